"""The other side of `workers`: a process that makes one reward and answers for it. It needs no diffusers or peft."""

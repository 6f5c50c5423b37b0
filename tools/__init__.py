"""Programs that release the project and write its listings; no part of any distribution."""

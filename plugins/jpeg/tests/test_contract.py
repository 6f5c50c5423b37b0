"""The three rewards keep the contract of draft-core."""

from draft_core.testing import RewardContract


class TestJpeg(RewardContract):
    kind = "jpeg"


class TestJpegIncompress(RewardContract):
    kind = "jpeg"
    config = {"direction": "incompress", "quality": 95, "subsampling": "4:4:4"}  # noqa: RUF012 declared ClassVar above


class TestJpegDistortion(RewardContract):
    kind = "jpeg-distortion"


class TestJpegSize(RewardContract):
    kind = "jpeg-size"

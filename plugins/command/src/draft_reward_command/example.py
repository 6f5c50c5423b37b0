import json
import sys

from PIL import Image, ImageStat

for line in sys.stdin:  # the path of an image
    with Image.open(line.rstrip("\n")) as image:
        saturation = ImageStat.Stat(image.convert("HSV")).mean[1] / 255
    print(json.dumps({"score": saturation}), flush=True)

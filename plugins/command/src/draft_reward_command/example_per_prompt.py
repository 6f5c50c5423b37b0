import json
import sys

from PIL import Image, ImageStat

for line in sys.stdin:  # {"image": the path of an image, "prompt": its prompt}
    request = json.loads(line)
    with Image.open(request["image"]) as image:
        brightness = ImageStat.Stat(image.convert("L")).mean[0] / 255
    wanted = "night" not in request["prompt"]
    print(json.dumps({"score": brightness if wanted else 1 - brightness}), flush=True)

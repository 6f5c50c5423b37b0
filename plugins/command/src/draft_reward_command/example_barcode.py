import sys

import zxingcpp  # pip install zxing-cpp
from PIL import Image, ImageFilter

BLURS = (0, 1, 2, 3, 4)  # pixels: how far away or out of focus it can still be read

for line in sys.stdin:  # the path of an image
    with Image.open(line.rstrip("\n")) as image:
        blurred = [image.filter(ImageFilter.GaussianBlur(radius)) for radius in BLURS]
    texts = [[code.text for code in zxingcpp.read_barcodes(image)] for image in blurred]
    print(sum(sys.argv[1] in found for found in texts) / len(BLURS), flush=True)

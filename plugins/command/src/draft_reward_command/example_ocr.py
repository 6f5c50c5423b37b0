import difflib
import sys

from rapidocr_onnxruntime import RapidOCR  # pip install rapidocr-onnxruntime

reader = RapidOCR()
for line in sys.stdin:  # the path of an image
    found, _ = reader(line.rstrip("\n"))
    text = " ".join(said for _, said, _ in found or [])
    print(difflib.SequenceMatcher(None, sys.argv[1], text).ratio(), flush=True)

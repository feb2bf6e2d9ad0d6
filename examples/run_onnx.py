"""Runs an exported policy without torch: python examples/run_onnx.py best_model.onnx"""

import json
import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
shapes = json.loads(session.get_modelmeta().custom_metadata_map["reinflow"])["inputs"]
state = np.zeros(shapes["state"], "float32")  # the newest observations, oldest first; pictures go beside it
noise = np.random.default_rng(0).standard_normal(shapes["noise"], dtype="float32")
(actions,) = session.run(["actions"], {"state": state, "noise": noise})
print(actions[0])  # to be executed row by row before the next decision

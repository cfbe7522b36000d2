"""What every operation is to torch: how it is called, how it runs, its faces in ONNX and C."""

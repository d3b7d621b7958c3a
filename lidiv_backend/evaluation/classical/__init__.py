"""The systems before deep learning that the paper compares with.

They stand on OR-Tools, scikit-image, SciPy and OpenCV; only `lidiv_backend.evaluation.methods`
imports them, and only when they are asked for.
"""

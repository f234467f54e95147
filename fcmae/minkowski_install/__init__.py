"""Builds and installs MinkowskiEngine 0.5.4 from its source release: `fcmae install-minkowski`.

Imports the standard library only; torch is asked when a wheel is built or looked up.
"""

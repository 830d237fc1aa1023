"""What the tests of this folder share."""

import os
import tempfile

# trackio reads where it keeps runs when it is imported.
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="adept_ray-trackio-")

from . import kernels as kernels
from . import minhash as minhash
from . import packing as packing
from . import quantization as quantization

__version__: str

def cpu_features() -> dict[str, bool]: ...

runtime_version: int

def gqa_decode(
    *,
    q: int,
    out: int,
    k: int,
    v: int,
    lengths: int,
    page_table: int,
    k_scale: int,
    v_scale: int,
    partials: int,
    arrivals: int,
    kv_type: str,
    head_dim: int,
    batch: int,
    kv_heads: int,
    group: int,
    num_splits: int,
    num_pages: int,
    page_size: int,
    table_columns: int,
    table_stride: int,
    q_strides: tuple[int, int],
    out_strides: tuple[int, int],
    k_strides: tuple[int, int, int],
    v_strides: tuple[int, int, int],
    scale: float,
    stream: int,
) -> None: ...
def gqa_decode_shared_bytes(head_dim: int, kv_type: str, group: int) -> int: ...
def gqa_decode_info(head_dim: int, kv_type: str, group: int) -> dict[str, int]: ...
def unpack_rows(stream: int, **arguments: int) -> None: ...
def pack_spans(stream: int, **arguments: int | list[int]) -> None: ...
def norm_fp8(
    *,
    x: int,
    residual: int,
    total: int,
    weight: int,
    inverse: int,
    data: int,
    scale: int,
    data_t: int,
    scale_t: int,
    delayed: int,
    largest: int,
    x_row: int,
    residual_row: int,
    rows: int,
    size: int,
    weight_is_float: bool,
    eps: float,
    stream: int,
) -> None: ...
def norm_fp8_cluster(size: int) -> int: ...
def norm_fp8_shared_bytes(size: int) -> int: ...

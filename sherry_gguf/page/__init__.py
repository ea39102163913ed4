"""One page about one GGUF file: what it is, its bytes, its zeros, codes and scales, and what was measured of it.

    write_page(inspection, outfile, parity=..., bench=...)

sizes       bytes by class of tensor, as the file has them and as other types would
contents    what the page says of the file: plain values, taken from an inspection
measured    what the JSON of a comparison and of a benchmark has, checked
charts      values -> inline SVG
render      all of these -> HTML, by page.html.j2
"""

from sherry_gguf.page.render import write_page

__all__ = ["write_page"]

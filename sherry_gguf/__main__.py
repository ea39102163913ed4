import sys

from sherry_gguf.cli import main

sys.exit(main())

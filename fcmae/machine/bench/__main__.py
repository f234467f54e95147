"""The fresh process in which `memory.peak_memory` measures: prints one line of JSON."""

import sys

from fcmae.machine.bench.memory import answer

print(answer(sys.argv[1]))

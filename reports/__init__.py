"""Records in, report out: load, statistics, boards, figures, page; nothing in here trains or imports torch."""

from dstbench import by_full_name

by_full_name(__name__)

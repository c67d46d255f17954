"""Records in, report out: load, statistics, boards, figures, page; nothing in here trains or imports torch."""

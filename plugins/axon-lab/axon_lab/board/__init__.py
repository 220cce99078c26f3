"""`axon board`: fixed tasks, the recipes that hold their records, and a checker that runs them again.

What trains is in modules of its own, so that listing the board imports no torch.
"""

from axon_lab.board.folders import EntryFile, TaskFolder, find_task, read_tasks
from axon_lab.board.pages import board_page, record_curve, write_board_page
from axon_lab.board.tasks import BoardEntry, BoardTask, Reference, SeedRun, SeedSpread, Selection

__all__ = [
    "BoardEntry",
    "BoardTask",
    "EntryFile",
    "Reference",
    "SeedRun",
    "SeedSpread",
    "Selection",
    "TaskFolder",
    "board_page",
    "find_task",
    "read_tasks",
    "record_curve",
    "write_board_page",
]

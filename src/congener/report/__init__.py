"""The report of a run: a pure function of its folder, one page without network.

>>> from congener.report import summary_table, write_report
"""

from congener.report.page import write_report
from congener.report.words import SummaryRow, summary_table

__all__ = ["SummaryRow", "summary_table", "write_report"]

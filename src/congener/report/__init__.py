"""The report of a run, and the page of records: pure functions of folders, without network.

>>> from congener.report import summary_table, write_records, write_report
"""

from congener.report.page import write_report
from congener.report.records import holds_records, write_records
from congener.report.words import SummaryRow, summary_table

__all__ = ["SummaryRow", "holds_records", "summary_table", "write_records", "write_report"]

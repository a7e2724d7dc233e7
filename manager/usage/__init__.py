"""Reading rows: activity, reports, searches."""

from manager.usage import reports, request_search
from manager.usage.activity import ActiveRequest, Activity, ChunkCounter
from manager.usage.reports import Reports, TooManyBuckets
from manager.usage.request_search import Filters, RequestFilter
from manager.usage.totals import Totals

__all__ = [
    "ActiveRequest",
    "Activity",
    "ChunkCounter",
    "Filters",
    "Reports",
    "RequestFilter",
    "TooManyBuckets",
    "Totals",
    "reports",
    "request_search",
]

"""Authentication, authorization and limits: keys, accounts, tokens, audit.

API keys are for ``/v1``; accounts, with a password, and tokens, for scripts, are for the pages and
``/api``. All are in usage.db, so that they are saved and restored with what was used under them.
"""

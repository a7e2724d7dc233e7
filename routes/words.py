"""The words that the pages' scripts say; all others stand in the templates."""

from __future__ import annotations

from flask_babel import gettext as _


def for_scripts() -> dict[str, str]:
    """By the key that a script says, in the language of the request."""
    return {
        "unreachable": _("LLM-Manager does not answer"),
        "live": _("Live"),
        "not_connected": _("Not connected. Trying again …"),
        "connected_again": _("Connected again"),
        "close": _("Close"),
        "copied": _("Copied"),
        # models
        "state_stopped": _("stopped"),
        "state_queued": _("waits for room"),
        "state_starting": _("starting"),
        "state_ready": _("ready"),
        "state_stopping": _("stopping"),
        "state_failed": _("failed"),
        "start": _("Start"),
        "stop": _("Stop"),
        "restart": _("Restart"),
        "stop_all": _("Stop all"),
        "start_it": _("Start {name}"),
        "stop_it": _("Stop {name}"),
        "restart_it": _("Restart {name}"),
        "log_of": _("Log of {name}"),
        "waits_for": _("waits for {models}"),
        "place": _("place {place} in the line"),
        "agree_stop": _("{name} answers {count} requests. Stop it?"),
        "agree_restart": _("{name} answers {count} requests. Restart it?"),
        "agree_stop_all": _("Stop all models?"),
        "stopping_all": _("All models are being stopped"),
        "is_ready": _("{name} is ready after {seconds}, scheme {scheme}"),
        "is_stopped": _("{name} is stopped"),
        "did_not_start": _("{name} did not start: {why}"),
        "no_model": _("no model"),
        # devices
        "load": _("load {load} %"),
        "used": _("{used} of {total} in use"),
        "read_now": _("read just now"),
        "read": _("read {span} ago"),
        "declared": _("{name}: {mb} declared"),
        "measured": _("{name}: {mb} ({declared} declared)"),
        "others": _("others: {mb}"),
        "unused": _("nothing in use"),
        "busy": _("{in_flight}, and {waiting} wait"),
        "speed_of": _("{speed} tokens a second"),
        "ago": _("{span} ago, in {took}"),
        "dry_it": _("What would a start of {name} do?"),
        "memory_declared": _("{mb} of {device}, declared"),
        "memory_measured": _("{mb} of {device} ({declared} declared)"),
        "idle_stop": _("stops in {span}, if nobody asks"),
        "never_stops": _("stays until it is stopped"),
        "scheme_why": _("not {scheme}: {reason}"),
        "dry_none": _("Nothing would be done: {reason}"),
        "dry_start": _("It would start at once, in scheme {scheme}."),
        "dry_evict": _("It would stop {models}, then start in scheme {scheme}."),
        "dry_wait": _("It would wait for {models}, then start in scheme {scheme}."),
        "dry_soon": _("It would wait a moment, then start in scheme {scheme}: {reason}"),
        "dry_refuse": _("It cannot start: {reason}"),
        "takes": _("It takes {memory}."),
        "models_shown": _("{shown} of {count} models"),
        # sums
        "prompt_speed": _("{speed} of prompts"),
        "waiting_count": _("{count} wait"),
        "yesterday": _("yesterday {value}"),
        "yesterday_failed": _("yesterday {value} · {failed} failed"),
        "speed_chart": _("Tokens a second: {now} now, {highest} at most"),
        # logs
        "lines_shown": _("{shown} of {count} lines"),
        "lines_waiting": _("{count} new ones wait"),
        "not_copied": _("The browser does not let this page copy: select the text yourself"),
    }

"""The rows of the route table that are about the configuration."""

from __future__ import annotations

from gpulockd.config.impact import Impact
from gpulockd.web import config_views as views
from gpulockd.web import configuring, rolling_out
from gpulockd.web.table import Query, Row

_HISTORY = (Query("before", "only revisions below this number"), Query("count", "how many", most=200))
_AUDIT = (
    Query("before", "only lines before the one with this id", "string", pattern=r"^[1-9][0-9]{0,14}-[0-9]{1,9}$"),
    Query("count", "how many", most=200),
)
_DIFF = (Query("older", "a revision; default: the last stable one"), Query("newer", "default: the one in force"))

ROWS: tuple[Row, ...] = (
    Row(
        method="GET",
        path="/api/v1/config",
        handler=configuring.show_config,
        answer=views.ConfigView,
        summary="The configuration in force here, and which layer says each value",
    ),
    Row(
        method="POST",
        path="/api/v1/config",
        handler=configuring.change_config,
        request=views.ConfigChange,
        answer=views.ConfigChanged,
        access="operator",
        problems=(409,),
        summary="Change the live configuration, or say what a change would do (dry_run)",
    ),
    Row(
        method="POST",
        path="/api/v1/config/gpu-lock",
        handler=configuring.change_gpu_lock,
        request=dict,
        form=views.GpuLockChange,
        answer=views.GpuLockChanged,
        access="operator",
        problems=(409,),
        summary="Change keys of the block gpu_lock",
    ),
    Row(
        method="GET",
        path="/api/v1/config/history",
        handler=configuring.config_history,
        answer=views.ConfigHistory,
        query=_HISTORY,
        summary="The revisions of the configuration, the newest first",
    ),
    Row(
        method="GET",
        path="/api/v1/config/audit",
        handler=configuring.config_audit,
        answer=views.ConfigAudit,
        query=_AUDIT,
        summary="Who did what to the configuration, the newest line first",
    ),
    Row(
        method="GET",
        path="/api/v1/config/diff",
        handler=configuring.config_diff,
        answer=views.ConfigDiff,
        query=_DIFF,
        summary="What differs between two revisions",
    ),
    Row(
        method="POST",
        path="/api/v1/config/rollback",
        handler=configuring.roll_config_back,
        request=views.RollbackWish,
        answer=views.ConfigRolledBack,
        access="operator",
        problems=(409,),
        summary="Restore the last stable revision, or the one that is named, and see whether the system is well",
    ),
    Row(
        method="POST",
        path="/api/v1/config/validation",
        handler=configuring.note_validation,
        request=views.ValidationNote,
        answer=views.ValidationNoted,
        access="operator",
        problems=(409,),
        summary="Remember what a benchmark said of a candidate",
    ),
    Row(
        method="GET",
        path="/api/v1/config/rollout",
        handler=rolling_out.show_rollout,
        answer=rolling_out.RolloutView,
        summary="The rollout under way, or the last one",
    ),
    Row(
        method="POST",
        path="/api/v1/config/rollout",
        handler=rolling_out.start_rollout,
        request=rolling_out.RolloutWish,
        answer=rolling_out.RolloutView,
        access="operator",
        problems=(409,),
        summary="Bring a change to the fleet in stages",
    ),
    *(
        Row(
            method="POST",
            path=f"/api/v1/config/rollout/{handler.__name__.removesuffix('_rollout')}",
            handler=handler,
            request=rolling_out.Steer,
            answer=rolling_out.RolloutView,
            access="operator",
            problems=(409,),
            summary=str(handler.__doc__),
        )
        for handler in (
            rolling_out.approve_rollout,
            rolling_out.pause_rollout,
            rolling_out.resume_rollout,
            rolling_out.abort_rollout,
        )
    ),
    Row(
        method="GET",
        path="/api/v1/monitoring/gpu-lock/config-impact",
        handler=configuring.config_impact,
        answer=Impact,
        query=(Query("revision", "of this revision; default: the newest one"),),
        summary="How it went before and after a change; all null before any change",
    ),
)

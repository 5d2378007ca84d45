//! What the server counts, under the reference's names and labels (upstream: `test/instrumentation`), for the whole
//! process. Labels that clients choose are cleaned where they are set, so that nobody can make series at will.

mod process;
pub mod request;

use std::sync::LazyLock;
use std::time::Instant;

use exposition::Stability::{Alpha, Beta, Stable};
use exposition::{Counter, Expose, Family, Gauge, Histogram, families};

const DURATIONS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
const SLI_DURATIONS: &[f64] = &[
    0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
const STORE_DURATIONS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
const SIZES: &[f64] = &[1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
const EVENT_SIZES: &[f64] = &[1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0, 131_072.0];
const BODY_SIZES: &[f64] = &[
    50_000.0,
    150_000.0,
    250_000.0,
    350_000.0,
    450_000.0,
    550_000.0,
    650_000.0,
    750_000.0,
    850_000.0,
    950_000.0,
    1_050_000.0,
    1_150_000.0,
    1_250_000.0,
    1_350_000.0,
    1_450_000.0,
    1_550_000.0,
    1_650_000.0,
    1_750_000.0,
    1_850_000.0,
    1_950_000.0,
    2_050_000.0,
    2_150_000.0,
    2_250_000.0,
    2_350_000.0,
    2_450_000.0,
    2_550_000.0,
    2_650_000.0,
    2_750_000.0,
    2_850_000.0,
    2_950_000.0,
    3_050_000.0,
];
const ADMISSION: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
const WEBHOOKS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
const WATCH_LISTS: &[f64] = &[0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0];
const CONDITIONS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25];
const POLICIES: &[f64] = &[0.000_000_5, 0.001, 0.01, 0.1, 1.0];
/// As the client library's default buckets.
const CEL: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const WAITS: &[f64] = &[0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
const QUEUE_LENGTHS: &[f64] = &[0.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0];
const SEATS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0];
const WATCHERS: &[f64] = &[0.0, 1.0, 10.0, 100.0, 1000.0, 10_000.0];
const KMS: &[f64] = &[
    0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128, 0.0256, 0.0512, 0.1024, 0.2048, 0.4096,
    0.8192, 1.6384, 3.2768, 6.5536, 13.1072,
];
const TRANSFORMS: &[f64] = &[
    5e-6, 1e-5, 2e-5, 4e-5, 8e-5, 1.6e-4, 3.2e-4, 6.4e-4, 1.28e-3, 2.56e-3, 5.12e-3, 1.024e-2, 2.048e-2,
    4.096e-2,
];

/// Labels of a request without its answer.
const REQUEST: &[&str] = &["component", "group", "resource", "scope", "subresource", "verb", "version"];
const REQUEST_DRY: &[&str] =
    &["component", "dry_run", "group", "resource", "scope", "subresource", "verb", "version"];
const FLOW: &[&str] = &["flow_schema", "priority_level"];
const LEVEL: &[&str] = &["priority_level"];
const KIND: &[&str] = &["group", "resource"];

families! {
    /// All families.
    pub struct Metrics {
        request_total: Counter = Family::new("apiserver_request_total", Stable,
            "Requests by verb, dry run, resource, scope, client and answer code.",
            &["code", "component", "dry_run", "group", "resource", "scope", "subresource", "system_client", "verb", "version"]);
        request_duration: Histogram = Family::histogram("apiserver_request_duration_seconds", Stable,
            "Time from a request's arrival to its answer.", REQUEST_DRY, DURATIONS);
        request_sli_duration: Histogram = Family::histogram("apiserver_request_sli_duration_seconds", Alpha,
            "Time from arrival to answer without webhooks and waiting in queues.", REQUEST, SLI_DURATIONS);
        response_sizes: Histogram = Family::histogram("apiserver_response_sizes", Stable,
            "Bytes of the answers to gets and lists.", REQUEST, SIZES);
        request_body_size: Histogram = Family::histogram("apiserver_request_body_size_bytes", Alpha,
            "Bytes of request bodies.", &["group", "resource", "verb"], BODY_SIZES);
        current_inflight: Gauge = Family::new("apiserver_current_inflight_requests", Stable,
            "Most requests served at once in the last second.", &["request_kind"]);
        current_inqueue: Gauge = Family::new("apiserver_current_inqueue_requests", Alpha,
            "Most requests waiting at once in the last second.", &["request_kind"]);
        longrunning: Gauge = Family::new("apiserver_longrunning_requests", Stable,
            "Long-running requests that are open.", REQUEST);
        request_terminations: Counter = Family::new("apiserver_request_terminations_total", Alpha,
            "Requests that the server ended to protect itself.",
            &["code", "component", "group", "resource", "scope", "subresource", "verb", "version"]);
        request_aborts: Counter = Family::new("apiserver_request_aborts_total", Alpha,
            "Requests that were broken off, most by the time limit.",
            &["group", "resource", "scope", "subresource", "verb", "version"]);
        requested_deprecated_apis: Gauge = Family::new("apiserver_requested_deprecated_apis", Stable,
            "Deprecated APIs that have been asked for.",
            &["group", "removed_release", "resource", "subresource", "version"]);
        tls_handshake_errors: Counter = Family::new("apiserver_tls_handshake_errors_total", Alpha,
            "Connections that were dropped in their TLS handshake.", &[]);
        field_validation_duration: Histogram = Family::histogram("field_validation_request_duration_seconds", Alpha,
            "Time to the answer by field validation.", &["field_validation"], SLI_DURATIONS);

        watch_events: Counter = Family::new("apiserver_watch_events_total", Alpha,
            "Chunks of watch events sent to clients.", &["group", "resource", "version"]);
        watch_events_sizes: Histogram = Family::histogram("apiserver_watch_events_sizes", Alpha,
            "Bytes of watch events sent to clients.", &["group", "resource", "version"], EVENT_SIZES);
        terminated_watchers: Counter = Family::new("apiserver_terminated_watchers_total", Alpha,
            "Watches that were ended because they could not keep up.", KIND);
        storage_objects: Gauge = Family::new("apiserver_storage_objects", Stable,
            "Stored objects by resource.", &["resource"]);
        storage_events: Counter = Family::new("apiserver_storage_events_received_total", Beta,
            "Changes that the store told of.", KIND);
        watch_list: Histogram = Family::histogram("apiserver_watch_list_duration_seconds", Beta,
            "Time to the end of a streamed list.", &["group", "resource", "scope", "version"], WATCH_LISTS);
        resource_objects: Gauge = Family::new("apiserver_resource_objects", Alpha,
            "Stored objects by group and resource.", KIND);
        consistency_checks: Counter = Family::new("apiserver_storage_consistency_checks_total", Alpha,
            "Comparisons of a watch cache with the store, by outcome.", &["group", "resource", "status"]);
        storage_size: Gauge = Family::new("apiserver_storage_size_bytes", Stable,
            "Bytes that the store takes on disk.", &["storage_cluster_id"]);
        store_duration: Histogram = Family::histogram("etcd_request_duration_seconds", Alpha,
            "Time that the store took, by operation.", &["group", "operation", "resource"], STORE_DURATIONS);
        store_requests: Counter = Family::new("etcd_requests_total", Alpha,
            "Requests to the store, by operation.", &["group", "operation", "resource"]);
        store_errors: Counter = Family::new("etcd_request_errors_total", Alpha,
            "Requests to the store that failed, by operation.", &["group", "operation", "resource"]);

        admission_step: Histogram = Family::histogram("apiserver_admission_step_admission_duration_seconds", Stable,
            "Time that an admission step took.", &["operation", "rejected", "type"], ADMISSION);
        admission_controller: Histogram = Family::histogram("apiserver_admission_controller_admission_duration_seconds",
            Stable, "Time that an admission plug-in took.", &["name", "operation", "rejected", "type"], ADMISSION);
        admission_webhook: Histogram = Family::histogram("apiserver_admission_webhook_admission_duration_seconds",
            Stable, "Time that an admission webhook took.", &["name", "operation", "rejected", "type"], WEBHOOKS);
        admission_webhook_requests: Counter = Family::new("apiserver_admission_webhook_request_total", Alpha,
            "Requests to admission webhooks.", &["code", "name", "operation", "rejected", "type"]);
        admission_webhook_rejections: Counter = Family::new("apiserver_admission_webhook_rejection_count", Alpha,
            "Requests that admission webhooks refused.", &["error_type", "name", "operation", "rejection_code", "type"]);
        admission_webhook_fail_open: Counter = Family::new("apiserver_admission_webhook_fail_open_count", Alpha,
            "Requests let through although an admission webhook failed.", &["name", "type"]);
        match_condition_errors: Counter = Family::new("apiserver_admission_match_condition_evaluation_errors_total", Alpha,
            "Match conditions that could not be evaluated.", &["kind", "name", "operation", "type"]);
        match_condition_exclusions: Counter = Family::new("apiserver_admission_match_condition_exclusions_total", Alpha,
            "Requests that match conditions left out.", &["kind", "name", "operation", "type"]);
        match_condition_time: Histogram = Family::histogram("apiserver_admission_match_condition_evaluation_seconds", Alpha,
            "Time that match conditions took.", &["kind", "name", "operation", "type"], CONDITIONS);
        cel_compilation: Histogram = Family::histogram("apiserver_cel_compilation_duration_seconds", Beta,
            "Time that the compilation of an expression took.", &[], CEL);
        cel_evaluation: Histogram = Family::histogram("apiserver_cel_evaluation_duration_seconds", Beta,
            "Time that the evaluation of an expression took.", &[], CEL);
        validating_policy_time: Histogram = Family::histogram("apiserver_validating_admission_policy_check_duration_seconds",
            Beta, "Time that a check by a validating admission policy took.",
            &["enforcement_action", "error_type", "policy", "policy_binding"], POLICIES);
        mutating_policy_checks: Counter = Family::new("apiserver_mutating_admission_policy_check_total", Alpha,
            "Changes by mutating admission policies.", &["error_type", "policy", "policy_binding"]);
        mutating_policy_time: Histogram = Family::histogram("apiserver_mutating_admission_policy_check_duration_seconds",
            Alpha, "Time that a change by a mutating admission policy took.",
            &["error_type", "policy", "policy_binding"], POLICIES);
        validating_policy_checks: Counter = Family::new("apiserver_validating_admission_policy_check_total", Beta,
            "Checks by validating admission policies.", &["enforcement_action", "error_type", "policy", "policy_binding"]);

        authenticated_users: Counter = Family::new("authenticated_user_requests", Alpha,
            "Authenticated requests by user, all but the system's under one name.", &["username"]);
        authentication_attempts: Counter = Family::new("authentication_attempts", Alpha,
            "Authentications by result.", &["result"]);
        authentication_duration: Histogram = Family::histogram("authentication_duration_seconds", Alpha,
            "Time that an authentication took.", &["result"],
            &[0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384]);
        authorization_attempts: Counter = Family::new("authorization_attempts_total", Alpha,
            "Authorizations by result.", &["result"]);
        authorization_duration: Histogram = Family::histogram("authorization_duration_seconds", Alpha,
            "Time that an authorization took.", &["result"],
            &[0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384]);

        authentication_reloads: Counter =
            Family::new("apiserver_authentication_config_controller_automatic_reloads_total", Beta,
                "Reloads of the authentication configuration.", &["apiserver_id_hash", "status"]);
        authentication_reload_time: Gauge = Family::new(
            "apiserver_authentication_config_controller_automatic_reload_last_timestamp_seconds", Beta,
            "When the authentication configuration was last reloaded.", &["apiserver_id_hash", "status"]);
        authorization_reloads: Counter =
            Family::new("apiserver_authorization_config_controller_automatic_reloads_total", Beta,
                "Reloads of the authorization configuration.", &["apiserver_id_hash", "status"]);
        authorization_reload_time: Gauge = Family::new(
            "apiserver_authorization_config_controller_automatic_reload_last_timestamp_seconds", Beta,
            "When the authorization configuration was last reloaded.", &["apiserver_id_hash", "status"]);

        audit_events: Counter = Family::new("apiserver_audit_event_total", Alpha,
            "Audit events made and handed to the back ends.", &[]);
        audit_errors: Counter = Family::new("apiserver_audit_error_total", Alpha,
            "Audit events that a back end could not keep.", &["plugin"]);
        audit_levels: Counter = Family::new("apiserver_audit_level_total", Alpha,
            "Requests by the audit level that the policy chose.", &["level"]);
        audit_rejected: Counter = Family::new("apiserver_audit_requests_rejected_total", Alpha,
            "Requests refused because their audit event could not be kept.", &[]);

        flow_rejected: Counter = Family::new("apiserver_flowcontrol_rejected_requests_total", Beta,
            "Requests refused by priority and fairness.", &["flow_schema", "priority_level", "reason"]);
        flow_dispatched: Counter = Family::new("apiserver_flowcontrol_dispatched_requests_total", Beta,
            "Requests that began to be served.", FLOW);
        flow_inqueue: Gauge = Family::new("apiserver_flowcontrol_current_inqueue_requests", Beta,
            "Requests that wait.", FLOW);
        flow_inqueue_seats: Gauge = Family::new("apiserver_flowcontrol_current_inqueue_seats", Alpha,
            "Seats that waiting requests will take.", FLOW);
        flow_executing: Gauge = Family::new("apiserver_flowcontrol_current_executing_requests", Beta,
            "Requests that are served, watches while they begin.", FLOW);
        flow_executing_seats: Gauge = Family::new("apiserver_flowcontrol_current_executing_seats", Beta,
            "Seats that are taken, watches while they begin.", FLOW);
        flow_queue_length: Histogram = Family::histogram("apiserver_flowcontrol_request_queue_length_after_enqueue",
            Alpha, "Length of the queue as a new request sees it.", FLOW, QUEUE_LENGTHS);
        flow_wait: Histogram = Family::histogram("apiserver_flowcontrol_request_wait_duration_seconds", Beta,
            "Time that requests waited.", &["execute", "flow_schema", "priority_level"], WAITS);
        flow_execution: Histogram = Family::histogram("apiserver_flowcontrol_request_execution_seconds", Alpha,
            "Time that requests held their seats.", &["flow_schema", "priority_level", "type"], WAITS);
        flow_work: Histogram = Family::histogram("apiserver_flowcontrol_work_estimated_seats", Alpha,
            "Seats that a request was judged to need.", FLOW, SEATS);
        flow_watch_count: Histogram = Family::histogram("apiserver_flowcontrol_watch_count_samples", Alpha,
            "Watchers that a write has to tell.", FLOW, WATCHERS);
        flow_no_accommodation: Counter = Family::new("apiserver_flowcontrol_request_dispatch_no_accommodation_total",
            Alpha, "Times that the next request had to wait for seats.", FLOW);
        flow_nominal: Gauge = Family::new("apiserver_flowcontrol_nominal_limit_seats", Beta,
            "Configured seats of a level.", LEVEL);
        flow_lower: Gauge = Family::new("apiserver_flowcontrol_lower_limit_seats", Alpha,
            "Fewest seats of a level: others borrow no more.", LEVEL);
        flow_upper: Gauge = Family::new("apiserver_flowcontrol_upper_limit_seats", Alpha,
            "Most seats of a level: it borrows no more.", LEVEL);
        flow_current: Gauge = Family::new("apiserver_flowcontrol_current_limit_seats", Alpha,
            "Seats of a level now, after lending and borrowing.", LEVEL);
        flow_demand_high: Gauge = Family::new("apiserver_flowcontrol_demand_seats_high_watermark", Alpha,
            "Most seats wanted at once in the last adjustment period.", LEVEL);
        flow_demand_average: Gauge = Family::new("apiserver_flowcontrol_demand_seats_average", Alpha,
            "Seats wanted on average in the last adjustment period.", LEVEL);
        flow_demand_deviation: Gauge = Family::new("apiserver_flowcontrol_demand_seats_stdev", Alpha,
            "Standard deviation of the seats wanted in the last adjustment period.", LEVEL);
        flow_demand_smoothed: Gauge = Family::new("apiserver_flowcontrol_demand_seats_smoothed", Alpha,
            "Seats wanted, smoothed over the adjustment periods.", LEVEL);
        flow_target: Gauge = Family::new("apiserver_flowcontrol_target_seats", Alpha,
            "Seats that the adjustment aims at.", LEVEL);
        flow_fair_fraction: Gauge = Family::new("apiserver_flowcontrol_seat_fair_frac", Alpha,
            "Share of its target that each level gets, bounds aside.", &[]);

        transformations: Counter = Family::new("apiserver_storage_transformation_operations_total", Alpha,
            "Values sealed and opened for the store.",
            &["resource", "status", "transformation_type", "transformer_prefix"]);
        transformation_duration: Histogram = Family::histogram("apiserver_storage_transformation_duration_seconds",
            Alpha, "Time to seal or open a value for the store.", &["transformation_type", "transformer_prefix"], TRANSFORMS);
        encryption_reloads: Counter = Family::new("apiserver_encryption_config_controller_automatic_reloads_total",
            Alpha, "Reloads of the encryption configuration.", &["apiserver_id_hash", "status"]);
        encryption_reload_time: Gauge = Family::new(
            "apiserver_encryption_config_controller_automatic_reload_last_timestamp_seconds", Alpha,
            "When the encryption configuration was last reloaded.", &["apiserver_id_hash", "status"]);
        kms_duration: Histogram = Family::histogram("apiserver_envelope_encryption_kms_operations_latency_seconds",
            Alpha, "Time that a call of a KMS plug-in took.", &["grpc_status_code", "method_name", "provider_name"], KMS);
        kms_bad_key_ids: Counter = Family::new("apiserver_envelope_encryption_invalid_key_id_from_status_total", Alpha,
            "Unusable key ids that a KMS plug-in's status named.", &["error", "provider_name"]);

        healthcheck: Gauge = Family::new("kubernetes_healthcheck", Stable,
            "Whether a health check passes.", &["name", "type"]);
        healthchecks: Counter = Family::new("kubernetes_healthchecks_total", Stable,
            "Results of health checks.", &["name", "status", "type"]);
        build_info: Gauge = Family::new("kubernetes_build_info", Beta,
            "What was built, when and how.",
            &["build_date", "compiler", "git_commit", "git_tree_state", "git_version", "go_version", "major", "minor", "platform"]);
    }
}

static METRICS: LazyLock<(Metrics, Instant)> = LazyLock::new(|| (Metrics::new(), Instant::now()));

/// What the operating system knows of this process, for parts that serve metrics of their own.
pub use process::write as write_process_metrics;

/// The process's metrics.
pub fn metrics() -> &'static Metrics {
    &METRICS.0
}

/// Everything in the Prometheus text format.
pub fn text() -> String {
    let mut out = String::with_capacity(64 << 10);
    let mut families = metrics().each();
    families.sort_by_key(|family| family.name());
    for family in families {
        family.write(&mut out);
    }
    exposition::write_shared(&mut out);
    process::write(&mut out);
    out
}

/// Only what tells whether the server's parts are well, for `/metrics/slis`.
pub fn slis() -> String {
    let mut out = String::new();
    metrics().healthcheck.write(&mut out);
    metrics().healthchecks.write(&mut out);
    out
}

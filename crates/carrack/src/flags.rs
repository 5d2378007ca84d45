//! The API server's flags, named as the reference names them, and the configuration that they make.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use apiserver::audit::{AuditConfig, BatchConfig, LogConfig, Mode, Rotation};
use apiserver::{Config, Features, Protection, RuntimeConfig, parse_duration};
use clap::ArgAction;

/// What protects the API server, and what it writes down.
#[derive(clap::Args, Clone)]
#[command(next_help_heading = "API server")]
pub struct Flags {
    /// Reads served at once; with the next, the seats that all priority levels share
    #[arg(long, default_value_t = 400)]
    pub max_requests_inflight: usize,
    /// Writes served at once
    #[arg(long, default_value_t = 200)]
    pub max_mutating_requests_inflight: usize,
    /// Serve flows fairly by priority level
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub enable_priority_and_fairness: bool,
    /// How long a request may take
    #[arg(long, default_value = "1m0s", value_parser = parse_duration)]
    pub request_timeout: Duration,
    /// A watch without a time limit ends after once to twice so many seconds
    #[arg(long, default_value_t = 1800)]
    pub min_request_timeout: u64,
    /// How long a server that is to stop goes on serving, saying that it is not ready
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    pub shutdown_delay_duration: Duration,
    /// While open requests end, tell clients with 429 to go elsewhere
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub shutdown_send_retry_after: bool,

    /// What is audited; without it who changed what, never contents
    #[arg(long)]
    pub audit_policy_file: Option<PathBuf>,
    /// The audit log; '-' is the standard output, an empty text switches it off
    #[arg(long)]
    pub audit_log_path: Option<String>,
    /// Megabytes at which the audit log is put aside; 0: never
    #[arg(long)]
    pub audit_log_maxsize: Option<u64>,
    /// How many old audit logs are kept; 0: all
    #[arg(long)]
    pub audit_log_maxbackup: Option<usize>,
    /// Days that old audit logs are kept; 0: any number
    #[arg(long, default_value_t = 0)]
    pub audit_log_maxage: u64,
    /// Compress old audit logs
    #[arg(long)]
    pub audit_log_compress: bool,
    /// batch, blocking or blocking-strict
    #[arg(long)]
    pub audit_log_mode: Option<Mode>,
    /// Events that may wait in batch mode
    #[arg(long, default_value_t = 10_000)]
    pub audit_log_batch_buffer_size: usize,
    /// A kubeconfig file that names the webhook which audit events are sent to
    #[arg(long)]
    pub audit_webhook_config_file: Option<PathBuf>,
    /// batch, blocking or blocking-strict
    #[arg(long, default_value = "batch")]
    pub audit_webhook_mode: Mode,
    /// Events that may wait for the webhook
    #[arg(long, default_value_t = 10_000)]
    pub audit_webhook_batch_buffer_size: usize,
    /// Most events in a batch
    #[arg(long, default_value_t = 400)]
    pub audit_webhook_batch_max_size: usize,
    /// How long a batch waits to become full
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    pub audit_webhook_batch_max_wait: Duration,
    /// Bound the number of batches
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub audit_webhook_batch_throttle_enable: bool,
    /// Batches a second in the long run
    #[arg(long, default_value_t = 10.0)]
    pub audit_webhook_batch_throttle_qps: f64,
    /// Batches that may be sent at once after a rest
    #[arg(long, default_value_t = 15)]
    pub audit_webhook_batch_throttle_burst: usize,
    /// How long to wait before a batch is sent again
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub audit_webhook_initial_backoff: Duration,
    /// Cut events and split batches that are too large
    #[arg(long)]
    pub audit_webhook_truncate_enabled: bool,
    /// Most bytes of a batch
    #[arg(long, default_value_t = 10_485_760)]
    pub audit_webhook_truncate_max_batch_size: usize,
    /// Most bytes of an event
    #[arg(long, default_value_t = 102_400)]
    pub audit_webhook_truncate_max_event_size: usize,

    /// Which resources are sealed in the store and with what; without it Secrets, with the server's own key
    #[arg(long)]
    pub encryption_provider_config: Option<PathBuf>,
    /// Put changes of that file in force while the server runs
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub encryption_provider_config_automatic_reload: bool,
    /// Authorities of kubelets' serving certificates beside the cluster's own, in PEM
    #[arg(long)]
    pub kubelet_certificate_authority: Option<PathBuf>,
    /// Do not check kubelets' serving certificates, for kubelets that sign them themselves
    #[arg(long)]
    pub kubelet_insecure_skip_tls_verify: bool,
    /// Where traces of requests are sent, and of how many
    #[arg(long)]
    pub tracing_config_file: Option<PathBuf>,
    /// Feature gates by upstream's names: NAME=true,NAME=false
    #[arg(long, default_value = "")]
    pub feature_gates: Features,
    /// Versions of the API that are off by default: GROUP/VERSION=true, api/beta=true, api/all=true
    #[arg(long, default_value = "")]
    pub runtime_config: RuntimeConfig,
}

const MEGABYTE: u64 = 1 << 20;
const DAY: Duration = Duration::from_secs(86_400);

/// An audit log that is kept unless another one is asked for: its size is bounded, and it costs next to nothing.
pub struct Standard<'a>(pub &'a Path);

impl Flags {
    /// Puts the flags into a configuration. `standard` is the audit log of a cluster that is told nothing of audit.
    pub fn apply(&self, config: &mut Config, standard: Option<Standard<'_>>) -> anyhow::Result<()> {
        ensure!(
            self.max_requests_inflight + self.max_mutating_requests_inflight > 0
                || !self.enable_priority_and_fairness,
            "--max-requests-inflight and --max-mutating-requests-inflight cannot both be 0 with priority and fairness"
        );
        ensure!(!self.request_timeout.is_zero(), "--request-timeout must be more than nothing");
        config.protection = Protection {
            request_timeout: self.request_timeout,
            min_request_timeout: Duration::from_secs(self.min_request_timeout.max(1)),
            max_requests_inflight: self.max_requests_inflight,
            max_mutating_requests_inflight: self.max_mutating_requests_inflight,
            priority_and_fairness: self.enable_priority_and_fairness,
            shutdown_delay: self.shutdown_delay_duration,
            shutdown_send_retry_after: self.shutdown_send_retry_after,
            ..Protection::default()
        };
        config.audit = self.audit(standard)?;
        config.kubelet_authorities.clone_from(&self.kubelet_certificate_authority);
        config.kubelet_insecure = self.kubelet_insecure_skip_tls_verify;
        ensure!(
            self.encryption_provider_config.is_some() || !self.encryption_provider_config_automatic_reload,
            "--encryption-provider-config-automatic-reload needs --encryption-provider-config"
        );
        let reload = self.encryption_provider_config_automatic_reload;
        config.encryption = self.encryption_provider_config.clone().map(|path| (path, reload));
        config.tracing = self.tracing_config_file.clone();
        config.features = self.feature_gates;
        config.runtime.clone_from(&self.runtime_config);
        config.flags = given();
        Ok(())
    }

    fn audit(&self, standard: Option<Standard<'_>>) -> anyhow::Result<AuditConfig> {
        let rotation = |size: u64, backups: usize| Rotation {
            size: self.audit_log_maxsize.unwrap_or(size) * MEGABYTE,
            backups: self.audit_log_maxbackup.unwrap_or(backups),
            age: DAY * u32::try_from(self.audit_log_maxage).unwrap_or(u32::MAX),
            compress: self.audit_log_compress,
        };
        let log = |path: &Path, rotation: Rotation, mode: Mode| LogConfig {
            path: path.to_owned(),
            rotation,
            mode: self.audit_log_mode.unwrap_or(mode),
            buffer: self.audit_log_batch_buffer_size,
        };
        let log = match (&self.audit_log_path, standard) {
            (Some(path), _) if path.is_empty() => None,
            (Some(path), _) => Some(log(Path::new(path), rotation(100, 0), Mode::Blocking)),
            (None, Some(Standard(path))) => Some(log(path, rotation(10, 2), Mode::Batch)),
            (None, None) => None,
        };
        let truncate =
            (self.audit_webhook_truncate_max_batch_size, self.audit_webhook_truncate_max_event_size);
        ensure!(
            truncate.0 >= truncate.1,
            "--audit-webhook-truncate-max-batch-size must not be below --audit-webhook-truncate-max-event-size"
        );
        let throttle = (self.audit_webhook_batch_throttle_qps, self.audit_webhook_batch_throttle_burst);
        let batch = BatchConfig {
            mode: self.audit_webhook_mode,
            buffer: self.audit_webhook_batch_buffer_size,
            size: self.audit_webhook_batch_max_size.max(1),
            wait: self.audit_webhook_batch_max_wait,
            throttle: self.audit_webhook_batch_throttle_enable.then_some(throttle),
            first_backoff: self.audit_webhook_initial_backoff,
            truncate: self.audit_webhook_truncate_enabled.then_some(truncate),
        };
        let webhook = self.audit_webhook_config_file.clone().map(|path| (path, batch));
        Ok(AuditConfig { policy: self.audit_policy_file.clone(), log, webhook })
    }
}

/// The flags of the command line, which hold no secrets: those lie in the files that they name.
pub fn given() -> BTreeMap<String, String> {
    let arguments: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let mut flags = BTreeMap::new();
    for (i, argument) in arguments.iter().enumerate() {
        let Some(flag) = argument.strip_prefix("--") else { continue };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, value),
            None => (flag, arguments.get(i + 1).filter(|next| !next.starts_with("--")).map_or("true", |v| v)),
        };
        flags.insert(name.to_owned(), value.to_owned());
    }
    flags
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        flags: Flags,
    }

    fn config(arguments: &[&str], standard: Option<&Path>) -> anyhow::Result<Config> {
        let arguments = std::iter::once(&"apiserver").chain(arguments);
        let flags = Command::try_parse_from(arguments)?.flags;
        let mut config = Config::new("/nowhere");
        flags.apply(&mut config, standard.map(Standard))?;
        Ok(config)
    }

    #[test]
    fn without_flags_the_configuration_is_the_standard_one() {
        let standard = Config::new("/nowhere");
        let own = config(&[], None).expect("a configuration");
        assert_eq!((own.protection, own.audit), (standard.protection, standard.audit));
        let log = config(&[], Some(Path::new("/log"))).expect("a configuration").audit.log.expect("a log");
        assert_eq!((log.mode, log.rotation.size, log.rotation.backups), (Mode::Batch, 10 * MEGABYTE, 2));
        let off = config(&["--audit-log-path="], Some(Path::new("/log"))).expect("a configuration");
        assert_eq!(off.audit, AuditConfig::default());
    }

    #[test]
    fn flags_are_the_references() {
        let own = config(
            &[
                "--max-requests-inflight=7",
                "--enable-priority-and-fairness=false",
                "--request-timeout=30s",
                "--shutdown-delay-duration=1m5s",
                "--audit-log-path=/a.log",
                "--audit-log-maxage=3",
                "--audit-log-mode=batch",
                "--audit-webhook-config-file=/w",
                "--audit-webhook-batch-throttle-enable=false",
                "--encryption-provider-config=/e",
                "--encryption-provider-config-automatic-reload",
            ],
            None,
        )
        .expect("a configuration");
        assert_eq!(own.protection.max_requests_inflight, 7);
        assert!(!own.protection.priority_and_fairness);
        assert_eq!(own.protection.shutdown_delay, Duration::from_secs(65));
        let log = own.audit.log.expect("a log");
        assert_eq!((log.mode, log.rotation.age), (Mode::Batch, 3 * DAY));
        assert_eq!(own.audit.webhook.expect("a webhook").1.throttle, None);
        assert_eq!(own.encryption, Some(("/e".into(), true)));
    }

    #[test]
    fn faults_are_told() {
        let check = |arguments: &[&str], expect: &str| {
            let error = config(arguments, None).map(drop).expect_err("a fault").to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(&["--request-timeout=soon"], "invalid duration");
        check(&["--feature-gates=Nonsense=true"], "unrecognized feature gate");
        check(&["--runtime-config=apps/v9=true"], "no version of the API");
        check(&["--request-timeout=0s"], "--request-timeout");
        check(&["--audit-log-mode=never"], "\"never\" is not batch");
        check(&["--encryption-provider-config-automatic-reload=true"], "--encryption-provider-config");
        check(&["--max-requests-inflight=0", "--max-mutating-requests-inflight=0"], "cannot both be 0");
    }
}

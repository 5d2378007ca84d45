//! What can be typed.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// kubectl-compatible commands for any Kubernetes cluster.
#[derive(Parser)]
#[command(version, disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(clap::Args, Clone)]
pub(crate) struct Global {
    /// Path to the kubeconfig file
    #[arg(long, global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig context to use
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// The namespace of the request
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Display one or many resources
    Get(Get),
    /// Apply a configuration to a resource by file name or stdin
    Apply(Apply),
    /// Create a resource from a file or from stdin
    Create(Apply),
    /// Delete resources by file names, stdin, resources and names, or by label selector
    Delete(Delete),
    /// Print the logs of a container in a pod
    Logs(Logs),
    /// Execute a command in a container
    Exec(Exec),
    /// Show details of a resource
    Describe(Describe),
    /// Wait for a condition on one or many resources
    Wait(Wait),
    /// Set a new size for a workload
    Scale(Scale),
    /// Print the API resources that the server supports
    ApiResources,
    /// Print the client and server version
    Version,
}

#[derive(clap::Args, Clone, Default)]
pub(crate) struct Selection {
    /// TYPE, TYPE NAME..., or TYPE/NAME...
    pub targets: Vec<String>,
    /// Label selector, supports '=', '==', '!=', 'in', 'notin'
    #[arg(short = 'l', long)]
    pub selector: Option<String>,
    /// Field selector, supports '=', '==' and '!='
    #[arg(long)]
    pub field_selector: Option<String>,
    /// The requested objects across all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Files, folders or '-' that name the resources
    #[arg(short, long = "filename")]
    pub filename: Vec<PathBuf>,
    /// Process folders recursively
    #[arg(short = 'R', long)]
    pub recursive: bool,
}

#[derive(clap::Args)]
pub(crate) struct Get {
    #[command(flatten)]
    pub selection: Selection,
    /// json, yaml, name, wide or jsonpath=TEMPLATE (plain paths)
    #[arg(short, long)]
    pub output: Option<String>,
    /// After listing, watch for changes
    #[arg(short, long)]
    pub watch: bool,
    /// Do not print headers
    #[arg(long)]
    pub no_headers: bool,
    /// Do not fail if a named object does not exist
    #[arg(long)]
    pub ignore_not_found: bool,
    /// Show all labels as the last column
    #[arg(long)]
    pub show_labels: bool,
}

#[derive(clap::Args)]
pub(crate) struct Apply {
    /// Files, folders or '-'
    #[arg(short, long = "filename", required = true)]
    pub filename: Vec<PathBuf>,
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// strict (true), warn or ignore (false)
    #[arg(long, default_value = "strict", num_args = 0..=1, default_missing_value = "strict", require_equals = true)]
    pub validate: String,
    /// none or server
    #[arg(long, default_value = "none")]
    pub dry_run: String,
    /// Take over fields that others manage
    #[arg(long)]
    pub force_conflicts: bool,
    /// The name that owns the applied fields
    #[arg(long, default_value = "kubectl")]
    pub field_manager: String,
    /// Apply on the server (always so here; accepted for compatibility)
    #[arg(long)]
    pub server_side: bool,
}

#[derive(clap::Args)]
pub(crate) struct Delete {
    #[command(flatten)]
    pub selection: Selection,
    /// Delete all resources of the named types
    #[arg(long)]
    pub all: bool,
    /// background, orphan or foreground
    #[arg(long, default_value = "background")]
    pub cascade: String,
    /// Seconds given to the resource to terminate; -1 takes the resource's own
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    pub grace_period: i64,
    /// Remove at once, without waiting for graceful termination
    #[arg(long)]
    pub force: bool,
    /// Equal to --grace-period=1
    #[arg(long)]
    pub now: bool,
    /// Do not fail if an object does not exist
    #[arg(long)]
    pub ignore_not_found: bool,
    /// Wait until the objects are gone
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub wait: bool,
    /// How long to wait (for example 30s, 5m); 0s for ever
    #[arg(long, default_value = "0s")]
    pub timeout: String,
}

#[derive(clap::Args)]
pub(crate) struct Logs {
    /// POD or TYPE/NAME
    pub target: String,
    /// The container
    #[arg(short, long)]
    pub container: Option<String>,
    /// Stream the logs
    #[arg(short, long)]
    pub follow: bool,
    /// Print the logs of the container's previous instance
    #[arg(short, long)]
    pub previous: bool,
    /// Lines of recent log to show
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    pub tail: i64,
    /// Only logs newer than a duration such as 5s, 2m or 3h
    #[arg(long)]
    pub since: Option<String>,
    /// Include timestamps on each line
    #[arg(long)]
    pub timestamps: bool,
    /// The logs of all containers
    #[arg(long)]
    pub all_containers: bool,
}

#[derive(clap::Args)]
pub(crate) struct Exec {
    /// POD or TYPE/NAME
    pub target: String,
    /// The container
    #[arg(short, long)]
    pub container: Option<String>,
    /// Pass stdin to the container
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Stdin is a TTY
    #[arg(short = 't', long)]
    pub tty: bool,
    /// The command, after --
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct Describe {
    #[command(flatten)]
    pub selection: Selection,
}

#[derive(clap::Args)]
pub(crate) struct Wait {
    #[command(flatten)]
    pub selection: Selection,
    /// condition=NAME[=VALUE], delete, create or jsonpath={PATH}=VALUE
    #[arg(long = "for", required = true)]
    pub condition: String,
    /// Wait for all objects of the type
    #[arg(long)]
    pub all: bool,
    #[arg(long, default_value = "30s")]
    pub timeout: String,
}

#[derive(clap::Args)]
pub(crate) struct Scale {
    /// TYPE/NAME or TYPE NAME
    #[arg(required = true)]
    pub targets: Vec<String>,
    /// The new number of replicas
    #[arg(long)]
    pub replicas: u32,
}

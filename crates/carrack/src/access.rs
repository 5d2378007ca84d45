//! The flags of authentication and authorization, under kube-apiserver's names.

use std::path::PathBuf;
use std::time::Duration;

use apiserver::{AccessOptions, OidcOptions, WebhookOptions};
use clap::ArgAction;

/// Who may come in, and who decides what they may.
#[derive(clap::Args, Clone)]
#[command(next_help_heading = "Authentication and authorization")]
pub struct AccessArgs {
    /// Answer requests without credentials as system:anonymous
    #[arg(long, action = ArgAction::Set, default_value_t = true, num_args = 0..=1, default_missing_value = "true")]
    pub anonymous_auth: bool,
    /// PEM file of more authorities whose client certificates are accepted
    #[arg(long)]
    pub client_ca_file: Vec<PathBuf>,
    /// PEM file of the authority of front proxies, instead of the cluster's own
    #[arg(long)]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names that a front proxy's certificate may carry; an empty value allows all
    #[arg(long, value_delimiter = ',')]
    pub requestheader_allowed_names: Option<Vec<String>>,
    /// CSV file of static tokens: token,user,uid,"group1,group2"
    #[arg(long)]
    pub token_auth_file: Option<PathBuf>,
    /// Accept tokens of Secrets of the type bootstrap.kubernetes.io/token
    #[arg(long, action = ArgAction::Set, default_value_t = true, num_args = 0..=1, default_missing_value = "true")]
    pub enable_bootstrap_token_auth: bool,
    /// File with an AuthenticationConfiguration; read again when it changes
    #[arg(long)]
    pub authentication_config: Option<PathBuf>,
    /// Kubeconfig file of a webhook that knows tokens
    #[arg(long)]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// How long its answers are remembered
    #[arg(long, default_value = "2m", value_parser = apiserver::parse_duration)]
    pub authentication_token_webhook_cache_ttl: Duration,
    /// The version of TokenReview that it speaks
    #[arg(long, default_value = "v1beta1", value_parser = ["v1", "v1beta1"])]
    pub authentication_token_webhook_version: String,
    /// The issuer of ServiceAccount tokens
    #[arg(long)]
    pub service_account_issuer: Option<String>,
    /// The audiences of the API server
    #[arg(long, value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    /// URL of an OpenID Connect issuer (https)
    #[arg(long, requires = "oidc_client_id")]
    pub oidc_issuer_url: Option<String>,
    /// The audience that its tokens must have
    #[arg(long)]
    pub oidc_client_id: Option<String>,
    /// PEM file of the authority of the issuer's server
    #[arg(long)]
    pub oidc_ca_file: Option<PathBuf>,
    /// The claim that is the user's name
    #[arg(long, default_value = "sub")]
    pub oidc_username_claim: String,
    /// Stands before user names; '-' for none
    #[arg(long, default_value = "")]
    pub oidc_username_prefix: String,
    /// The claim that holds the user's groups
    #[arg(long, default_value = "")]
    pub oidc_groups_claim: String,
    /// Stands before group names
    #[arg(long, default_value = "")]
    pub oidc_groups_prefix: String,
    /// KEY=VALUE that a token must claim
    #[arg(long)]
    pub oidc_required_claim: Vec<String>,
    /// File with an AuthorizationConfiguration; read again when it changes
    #[arg(long)]
    pub authorization_config: Option<PathBuf>,
    /// Who is asked, in this order: AlwaysAllow, AlwaysDeny, ABAC, Node, RBAC, Webhook; Node,RBAC unless given
    #[arg(long, value_delimiter = ',')]
    pub authorization_mode: Vec<String>,
    /// File with the policies of ABAC, one JSON object a line
    #[arg(long)]
    pub authorization_policy_file: Option<PathBuf>,
    /// Kubeconfig file of an authorization webhook
    #[arg(long)]
    pub authorization_webhook_config_file: Option<PathBuf>,
    /// How long it is remembered that it allowed
    #[arg(long, default_value = "5m", value_parser = apiserver::parse_duration)]
    pub authorization_webhook_cache_authorized_ttl: Duration,
    /// How long it is remembered that it did not
    #[arg(long, default_value = "30s", value_parser = apiserver::parse_duration)]
    pub authorization_webhook_cache_unauthorized_ttl: Duration,
    /// The version of SubjectAccessReview that it speaks
    #[arg(long, default_value = "v1beta1", value_parser = ["v1", "v1beta1"])]
    pub authorization_webhook_version: String,
}

impl AccessArgs {
    /// Puts the settings into a server's configuration.
    pub fn apply(self, config: &mut apiserver::Config) {
        config.anonymous = self.anonymous_auth;
        let authentication_webhook =
            self.authentication_token_webhook_config_file.map(|kubeconfig| WebhookOptions {
                kubeconfig,
                version: self.authentication_token_webhook_version,
                lifetime: self.authentication_token_webhook_cache_ttl,
                refused_lifetime: self.authentication_token_webhook_cache_ttl,
            });
        let authorization_webhook = self.authorization_webhook_config_file.map(|kubeconfig| WebhookOptions {
            kubeconfig,
            version: self.authorization_webhook_version,
            lifetime: self.authorization_webhook_cache_authorized_ttl,
            refused_lifetime: self.authorization_webhook_cache_unauthorized_ttl,
        });
        let oidc = self.oidc_issuer_url.map(|issuer_url| OidcOptions {
            issuer_url,
            client_id: self.oidc_client_id.unwrap_or_default(),
            ca_file: self.oidc_ca_file,
            username_claim: self.oidc_username_claim,
            username_prefix: self.oidc_username_prefix,
            groups_claim: self.oidc_groups_claim,
            groups_prefix: self.oidc_groups_prefix,
            required_claims: self.oidc_required_claim,
        });
        let names = self.requestheader_allowed_names;
        config.access = AccessOptions {
            client_ca_files: self.client_ca_file,
            requestheader_client_ca_file: self.requestheader_client_ca_file,
            requestheader_allowed_names: names.map(|n| n.into_iter().filter(|n| !n.is_empty()).collect()),
            token_auth_file: self.token_auth_file,
            disable_bootstrap_tokens: !self.enable_bootstrap_token_auth,
            authentication_config: self.authentication_config,
            oidc,
            authentication_webhook,
            service_account_issuer: self.service_account_issuer,
            api_audiences: self.api_audiences,
            authorization_config: self.authorization_config,
            authorization_modes: self.authorization_mode,
            authorization_webhook,
            authorization_policy_file: self.authorization_policy_file,
        };
    }
}

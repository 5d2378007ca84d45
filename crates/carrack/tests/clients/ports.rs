//! `carrack controllers` and `carrack scheduler` beside a server: health for everybody, metrics for whom may read them.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;

use crate::server::Server;

/// A part that runs alone, and its port. Dropping it ends it.
struct Part {
    process: Child,
    port: u16,
}

impl Part {
    fn start(name: &str, server: &Server) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_carrack"))
            .args([name, "--port", "0", "--kubeconfig"])
            .arg(server.kubeconfig())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let told =
            lines.by_ref().find_map(|line| Some(line.strip_prefix("health and metrics on ")?.to_owned()));
        let port = told.expect("it says where").rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, port: port.expect("a port") }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn config(server: &Server) -> Config {
    let file = Kubeconfig::read_from(server.kubeconfig()).expect("the kubeconfig is read");
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("it is usable")
}

/// The code and body of a read with these credentials.
async fn get(config: &Config, part: &Part, path: &str) -> (u16, String) {
    let mut config = config.clone();
    config.cluster_url = format!("https://127.0.0.1:{}", part.port).parse().expect("a URL");
    // It signs its certificate itself.
    config.accept_invalid_certs = true;
    let client = Client::try_from(config).expect("a client");
    let request = http::Request::get(path).body(Vec::new()).expect("a request");
    match client.request_text(request).await {
        Ok(text) => (200, text),
        Err(kube::Error::Api(status)) => (status.code, status.message.clone()),
        Err(error) => panic!("{path}: {error}"),
    }
}

#[tokio::test]
async fn parts_that_run_alone_tell_how_they_are() {
    let server = Server::start();
    let admin = config(&server).await;
    let mut nobody = admin.clone();
    nobody.auth_info = Default::default();
    let accounts: Api<ServiceAccount> =
        Api::namespaced(Client::try_from(admin.clone()).expect("a client"), "default");
    let account = serde_json::from_value(json!({"metadata": {"name": "reader"}})).expect("an account");
    accounts.create(&PostParams::default(), &account).await.expect("created");
    let request: TokenRequest =
        serde_json::from_value(json!({"spec": {"audiences": []}})).expect("a request");
    let token = accounts.create_token_request("reader", &PostParams::default(), &request).await;
    let token = token.expect("a token").status.expect("a token").token.expect("a token");
    let bearer = |token: &str| {
        let mut config = nobody.clone();
        config.auth_info.token = Some(token.to_owned().into());
        config
    };
    for name in ["controllers", "scheduler"] {
        let part = Part::start(name, &server);
        assert_eq!(get(&nobody, &part, "/healthz").await, (200, "ok".to_owned()), "{name}");
        // The authority of the certificate is learnt from the server.
        let metrics = loop {
            let (code, text) = get(&admin, &part, "/metrics").await;
            if code == 200 {
                break text;
            }
            assert_eq!(code, 403, "{text}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        assert!(
            metrics.contains("process_start_time_seconds") && metrics.contains("rest_client_requests_total")
        );
        let told = "cannot get path \"/metrics\"";
        for (who, code, message) in
            [(&nobody, 403, told), (&bearer(&token), 403, told), (&bearer("nonsense"), 401, "Unauthorized")]
        {
            let (got, text) = get(who, &part, "/metrics").await;
            assert_eq!(got, code, "{name}: {text}");
            assert!(text.contains(message), "{name}: {text}");
        }
        assert_eq!(get(&admin, &part, "/nothing").await.0, 404);
    }
}

//! Health endpoints and metrics, as probes and Prometheus see them.

use apiserver::UserInfo;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;

use crate::harness::start;

#[tokio::test]
async fn checks_are_told_one_by_one() {
    let running = start(|_| {}).await;
    for endpoint in ["healthz", "livez", "readyz"] {
        let answer = running.ask(Method::GET, &format!("/{endpoint}"), None).await;
        assert_eq!((answer.code(), answer.text()), (200, "ok"));
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        let answer = running.ask(Method::GET, &format!("/{endpoint}?verbose"), None).await;
        let text = answer.text();
        assert!(text.starts_with("[+]ping ok\n[+]log ok\n[+]etcd ok\n"), "{text}");
        assert!(text.contains("[+]poststarthook/rbac/bootstrap-roles ok\n"), "{text}");
        assert!(text.ends_with(&format!("{endpoint} check passed\n")), "{text}");
    }
    let answer = running.ask(Method::GET, "/readyz/shutdown", None).await;
    assert_eq!((answer.code(), answer.text()), (200, "ok"));
    let answer = running.ask(Method::GET, "/livez/poststarthook/rbac/bootstrap-roles", None).await;
    assert_eq!((answer.code(), answer.text()), (200, "ok"));
    assert_eq!(running.ask(Method::GET, "/livez/shutdown", None).await.code(), 404);
    let answer = running.ask(Method::GET, "/healthz?verbose&exclude=etcd&exclude=none", None).await;
    assert!(answer.text().contains("[+]etcd excluded: ok\n"), "{}", answer.text());
    let warning = "warn: some health checks cannot be excluded: no matches for \"none\"\n";
    assert!(answer.text().contains(warning), "{}", answer.text());
}

#[tokio::test]
async fn metrics_have_the_references_names() {
    let running = start(|_| {}).await;
    running.ask(Method::GET, "/api/v1/namespaces/default/configmaps?limit=5", None).await;
    running.ask(Method::GET, "/apis/made.up/v1/things", None).await;
    running.ask(Method::GET, "/livez", None).await;
    let answer = running.ask(Method::GET, "/metrics", None).await;
    let text = answer.text();
    for expect in [
        "# TYPE apiserver_request_total counter\n",
        "apiserver_request_total{code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"configmaps\",\
         scope=\"namespace\",subresource=\"\",system_client=\"\",verb=\"LIST\",version=\"v1\"} ",
        "apiserver_request_duration_seconds_bucket{component=\"apiserver\",",
        "apiserver_response_sizes_count{component=\"apiserver\",group=\"\",resource=\"configmaps\",",
        "apiserver_current_inflight_requests{request_kind=\"readOnly\"} ",
        "apiserver_storage_objects{resource=\"clusterroles.rbac.authorization.k8s.io\"} ",
        "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"workload-low\"} ",
        "apiserver_flowcontrol_dispatched_requests_total{flow_schema=\"exempt\",priority_level=\"exempt\"} ",
        "kubernetes_healthcheck{name=\"ping\",type=\"livez\"} 1\n",
        "kubernetes_build_info{",
        "process_resident_memory_bytes ",
    ] {
        assert!(text.contains(expect), "{expect} is not in {text}");
    }
    assert!(!text.contains("made.up"), "a client cannot make series");
    // Every line is a comment or a sample.
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        assert!(value.parse::<f64>().is_ok() && !name.is_empty(), "{line}");
    }
    let slis = running.ask(Method::GET, "/metrics/slis", None).await;
    assert!(
        slis.text()
            .contains("kubernetes_healthchecks_total{name=\"etcd\",status=\"success\",type=\"livez\"}")
    );
}

#[tokio::test]
async fn the_process_tells_what_it_is() {
    let running = start(|config| {
        config.flags.insert("max-requests-inflight".to_owned(), "7".to_owned());
    })
    .await;
    let page = running.ask(Method::GET, "/flagz", None).await;
    assert!(page.text().starts_with("\napiserver flagz\nWarning: "), "{}", page.text());
    assert!(page.text().ends_with("\nmax-requests-inflight=7\n"), "{}", page.text());
    let page = running.ask(Method::GET, "/statusz", None).await;
    assert!(page.text().contains("\nEmulation version: 1.36\n"), "{}", page.text());
    let accept = async |path: &str, accept: &str| {
        let request = Request::get(path).header("accept", accept).body(Full::new(Bytes::new()));
        running.send(UserInfo::system_master("test"), request.expect("a request")).await
    };
    let flags = accept("/flagz", "application/json;v=v1beta1;g=config.k8s.io;as=Flagz").await.json();
    assert_eq!((&flags["kind"], &flags["apiVersion"]), (&"Flagz".into(), &"config.k8s.io/v1beta1".into()));
    assert_eq!(flags["flags"]["max-requests-inflight"], "7");
    let status = accept("/statusz", "application/json;v=v1beta1;g=config.k8s.io;as=Statusz").await.json();
    assert_eq!(status["binaryVersion"], "1.36.2");
    assert!(status["paths"].as_array().is_some_and(|paths| paths.iter().any(|p| p == "/readyz")));
    assert_eq!(accept("/flagz", "application/json").await.code(), 406);
}

#[tokio::test]
async fn documents_are_named_by_their_content() {
    let running = start(|_| {}).await;
    let get = async |path: &str, header: (&str, &str)| {
        let request = Request::get(path).header(header.0, header.1).body(Full::new(Bytes::new()));
        running.send(UserInfo::system_master("test"), request.expect("a request")).await
    };
    let index = get("/openapi/v3", ("accept", "*/*")).await.json();
    let address =
        index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("an address").to_owned();
    let document = get(&address, ("accept", "application/json")).await;
    assert_eq!(document.code(), 200);
    assert_eq!(document.header("cache-control"), "public, immutable");
    assert!(!document.header("expires").is_empty());
    assert!(document.json()["paths"]["/apis/apps/v1/deployments"].is_object());
    let tag = document.header("etag").to_owned();
    let same = get(&address, ("if-none-match", &tag)).await;
    assert_eq!((same.code(), same.body.len()), (304, 0));
    let moved = get("/openapi/v3/apis/apps/v1?hash=OLD", ("accept", "*/*")).await;
    assert_eq!((moved.code(), moved.header("location")), (301, address.as_str()));
    let unnamed = get("/openapi/v3/apis/apps/v1", ("accept", "*/*")).await;
    assert_eq!((unnamed.code(), unnamed.header("cache-control")), (200, "no-cache, private"));
    for (accept, expect) in [
        ("application/json", "application/json"),
        ("*/*", "application/json"),
        (
            "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
        ),
        (
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf, application/json;q=0.5",
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
        ),
        (
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf;q=0.1, application/json",
            "application/json",
        ),
    ] {
        let document = get("/openapi/v2", ("accept", accept)).await;
        assert_eq!((document.code(), document.header("content-type")), (200, expect), "{accept}");
    }
    assert_eq!(get("/openapi/v2", ("accept", "text/html")).await.code(), 406);
}

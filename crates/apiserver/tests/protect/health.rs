//! Health endpoints and metrics, as probes and Prometheus see them.

use http::Method;

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

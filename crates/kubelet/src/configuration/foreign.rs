//! Fields of upstream's KubeletConfiguration that mean nothing here, and those that cannot be had. The first are told of and
//! left out; the second are refused unless they ask for what this kubelet does anyway.

use serde_json::{Value, json};

/// Fields that tune something that works in another way here.
pub(super) const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("syncFrequency", "pods are looked after when something happens to them"),
    ("fileCheckFrequency", "the folder of static pods is followed through inotify"),
    ("cpuManagerReconcilePeriod", "processors are set when they change"),
    ("volumeStatsAggPeriod", "volumes are measured when they are asked for"),
    ("runtimeRequestTimeout", "requests to the runtime end by themselves"),
    ("kubeletCgroups", "the kubelet stays in the cgroup in which it was started"),
    ("systemCgroups", "no processes are moved"),
    ("qosReserved", "no memory is held back from lower classes"),
    ("hairpinMode", "pods reach themselves through their Services in any case"),
    ("podCIDR", "the pod range comes from the Node"),
    ("maxOpenFiles", "the limit of the service manager stays"),
    ("contentType", "the API is spoken to in JSON"),
    ("kubeAPIQPS", "requests are as many as there are changes"),
    ("kubeAPIBurst", "requests are as many as there are changes"),
    ("eventRecordQPS", "events are bounded by a queue"),
    ("eventBurst", "events are bounded by a queue"),
    ("configMapAndSecretChangeDetectionStrategy", "objects are watched"),
    ("makeIPTablesUtilChains", "iptables is not used"),
    ("iptablesMasqueradeBit", "iptables is not used"),
    ("iptablesDropBit", "iptables is not used"),
    ("showHiddenMetricsForVersion", "there are no hidden metrics"),
    ("volumePluginDir", "flexvolumes are not run"),
    ("kernelMemcgNotification", "levels are read every ten seconds"),
    ("logging", "logs are set by the environment variable CARRACK_LOG"),
    ("oomScoreAdj", "the score of the service manager stays"),
    ("enableContentionProfiling", "there is no profiling handler"),
    ("enableProfilingHandler", "there is no profiling handler"),
    ("enableDebugFlagsHandler", "there is no handler of debug flags"),
    ("healthzPort", "health is told on the kubelet's own port"),
    ("healthzBindAddress", "health is told on the kubelet's own port"),
    ("streamingConnectionIdleTimeout", "a stream ends with its peer"),
    ("containerLogMaxWorkers", "logs are rotated one after another"),
    ("tlsCurvePreferences", "rustls decides"),
    ("tracing", "the kubelet sends no traces"),
    ("failCgroupV1", "both cgroup versions are supported"),
    ("protectKernelDefaults", "kernel settings are left alone"),
    ("serverTLSBootstrap", "the cluster is asked for a serving certificate where no files are given"),
    ("rotateCertificates", "certificates are looked after by the role that runs the kubelet"),
    ("imageServiceEndpoint", "the image service is asked for at the runtime's endpoint"),
];

/// Fields that have to be as they are here, and why.
pub(super) fn refused() -> Vec<(&'static str, Vec<Value>, &'static str)> {
    vec![
        ("enableServer", vec![json!(true)], "the API server needs the kubelet's own API"),
        ("readOnlyPort", vec![json!(0)], "there is no port without authentication"),
        ("cgroupDriver", vec![json!(""), json!("cgroupfs")], "cgroups are made through cgroupfs"),
        ("cpuCFSQuotaPeriod", vec![json!("0s"), json!("100ms")], "quotas are of 100 ms"),
        ("runOnce", vec![json!(false)], "upstream removed it"),
        ("enableControllerAttachDetach", vec![json!(true)], "volumes are attached by the controllers"),
        ("tlsCipherSuites", vec![json!([])], "rustls's suites are all that there are"),
    ]
}

use super::*;

fn file(fields: &str) -> Result<Loaded, ConfigurationError> {
    parse(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{fields}"))
}

#[test]
fn settings_are_read_and_defaults_filled_in() {
    let text = "maxPods: 20\nsystemReserved: {cpu: 100m}\nevictionHard: {memory.available: 200Mi}\n\
        shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s\nimageMinimumGCAge: 0s\n\
        nodeStatusUpdateFrequency: 4s\nregisterWithTaints: [{key: a, effect: NoSchedule}]\n\
        crashLoopBackOff: {maxContainerRestartPeriod: 20s}\nmemorySwap: {}\ncpuManagerPolicy: ''\n";
    let found = file(text).expect("good").configuration;
    assert_eq!((found.max_pods, found.port, found.cpu_manager_policy.as_str()), (20, 10250, "none"));
    assert_eq!(found.image_minimum_gc_age, Span::seconds(120), "an empty duration is the default");
    assert_eq!(found.node_status_report_frequency, Span::seconds(4), "follows the update's");
    assert_eq!(found.shown()["shutdownGracePeriod"], "30s");
    assert_eq!(found.register_with_taints[0].key, "a");
    let again = parse(&found.shown().to_string()).expect("what is shown can be read");
    assert_eq!(again.configuration, found);
}

#[test]
fn a_file_of_another_installer_is_taken() {
    let text = "authentication: {anonymous: {enabled: false}, webhook: {cacheTTL: 0s, enabled: true}, \
        x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}}\n\
        authorization: {mode: Webhook, webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}}\n\
        cgroupDriver: cgroupfs\nclusterDNS: [10.96.0.10]\nclusterDomain: cluster.local\ncontainerRuntimeEndpoint: ''\n\
        cpuManagerReconcilePeriod: 0s\nevictionPressureTransitionPeriod: 0s\nfileCheckFrequency: 0s\nhealthzPort: 10248\n\
        logging: {flushFrequency: 0, verbosity: 0}\nrotateCertificates: true\nruntimeRequestTimeout: 0s\n\
        staticPodPath: /etc/kubernetes/manifests\nresolvConf: /run/systemd/resolve/resolv.conf\n";
    let found = file(text).expect("good");
    assert_eq!(found.configuration.authentication.x509.client_ca_file, "/etc/kubernetes/pki/ca.crt");
    assert!(found.warnings.iter().any(|warning| warning.starts_with("healthzPort has no effect")));
}

#[test]
fn what_is_wrong_is_named() {
    for (text, why) in [
        ("maxPods: [", "neither YAML nor JSON"),
        ("maxPod: 3", "maxPod: unknown field"),
        ("maxPods: many", "maxPods: "),
        ("maxPods: -1", "maxPods: "),
        ("memorySwap: {swap: x}", "memorySwap: unknown field `swap`"),
        ("memorySwap: {swapBehavior: UnlimitedSwap}", "memorySwap.swapBehavior: "),
        ("readOnlyPort: 10255", "readOnlyPort: 10255 is not supported"),
        ("cgroupDriver: systemd", "cgroupDriver: \"systemd\" is not supported"),
        ("authentication: {anonymous: {enabled: true}}", "authentication.anonymous.enabled: "),
        ("authorization: {mode: AlwaysAllow}", "authorization.mode: "),
        ("syncFrequency: 1s\nimageGCLowThresholdPercent: 90", "imageGCLowThresholdPercent: "),
        ("evictionHard: {memory: 1Mi}", "evictionHard: unknown signal \"memory\""),
        ("evictionHard: {memory.available: 1x}", "evictionHard: memory.available: "),
        ("evictionHard: {nodefs.available: 101%}", "evictionHard: nodefs.available: "),
        ("evictionSoft: {memory.available: 1Gi}", "evictionSoftGracePeriod: "),
        ("shutdownGracePeriod: 1s\nshutdownGracePeriodCriticalPods: 2s", "shutdownGracePeriodCriticalPods: "),
        ("shutdownGracePeriod: tomorrow", "shutdownGracePeriod: \"tomorrow\" is no duration"),
        ("cpuManagerPolicy: dynamic", "cpuManagerPolicy: "),
        ("cpuManagerPolicy: static", "cpuManagerPolicy: static needs reserved CPU"),
        ("cpuManagerPolicyOptions: {full-pcpus-only: 'true'}", "cpuManagerPolicyOptions: "),
        ("topologyManagerPolicy: all", "topologyManagerPolicy: "),
        ("topologyManagerScope: node", "topologyManagerScope: "),
        ("memoryManagerPolicy: static", "memoryManagerPolicy: "),
        ("memoryManagerPolicy: Static", "reservedMemory: "),
        ("reservedSystemCPUs: 3-1", "reservedSystemCPUs: "),
        ("reservedSystemCPUs: '0'\nkubeReservedCgroup: /a", "reservedSystemCPUs: "),
        ("enforceNodeAllocatable: [all]", "enforceNodeAllocatable: "),
        ("enforceNodeAllocatable: [none, pods]", "enforceNodeAllocatable: "),
        ("enforceNodeAllocatable: [system-reserved]", "systemReservedCgroup: "),
        ("systemReserved: {memory: 1q}", "systemReserved: memory: "),
        ("systemReserved: {gpu: '1'}", "systemReserved: gpu: "),
        ("allowedUnsafeSysctls: ['*']", "allowedUnsafeSysctls: "),
        ("containerLogMaxFiles: 1", "containerLogMaxFiles: "),
        ("containerLogMaxSize: much", "containerLogMaxSize: "),
        (
            "crashLoopBackOff: {maxContainerRestartPeriod: 10m}",
            "crashLoopBackOff.maxContainerRestartPeriod: ",
        ),
        ("serializeImagePulls: true\nmaxParallelImagePulls: 3", "maxParallelImagePulls: "),
        ("maxParallelImagePulls: 0", "maxParallelImagePulls: "),
        ("memoryThrottlingFactor: 2", "memoryThrottlingFactor: "),
        ("userNamespaces: {idsPerPod: 1000}", "userNamespaces.idsPerPod: "),
        ("cpuCFSQuotaPeriod: 2s", "cpuCFSQuotaPeriod: "),
        ("staticPodURL: ftp://x", "staticPodURL: "),
        ("tlsMinVersion: VersionTLS9", "tlsMinVersion: "),
        ("enableSystemLogHandler: false", "enableSystemLogQuery: "),
        ("imagePullCredentialsVerificationPolicy: Sometimes", "imagePullCredentialsVerificationPolicy: "),
        ("preloadedImagesVerificationAllowlist: [a]", "preloadedImagesVerificationAllowlist: "),
        (
            "imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\n\
             preloadedImagesVerificationAllowlist: ['a*']",
            "preloadedImagesVerificationAllowlist: ",
        ),
    ] {
        let error = file(text).expect_err(text).to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
    assert!(matches!(parse("kind: Pod"), Err(ConfigurationError::Kind)));
}

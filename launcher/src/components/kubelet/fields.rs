//! The keys of KubeletConfiguration and what each takes (k8s.io/kubelet v0.36, config/v1beta1/types.go).

use serde_json::Value;

use crate::components::programs::Version;

/// The newest kubelet whose keys are all here.
pub(super) const NEWEST: Version = Version::new(1, 36, u32::MAX);

/// What a key takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// true or false.
    Flag,
    /// A string.
    Text,
    /// A whole number.
    Whole,
    /// A number.
    Number,
    /// A string that Go parses as a duration.
    Duration,
    /// A list.
    List,
    /// A map to strings; kubelet takes no numbers there.
    Texts,
    /// A map to true or false.
    Flags,
    /// These keys.
    Table(&'static [(&'static str, Kind)]),
    /// Anything.
    Any,
}

impl Kind {
    /// In words, to follow "takes".
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Flag => "true or false",
            Kind::Text => "text",
            Kind::Whole => "a whole number",
            Kind::Number => "a number",
            Kind::Duration => "text such as 1m30s",
            Kind::List => "a list",
            Kind::Texts => "keys with text",
            Kind::Flags => "keys with true or false",
            Kind::Table(_) => "keys with values",
            Kind::Any => "anything",
        }
    }

    /// Whether this is such a value. In a map null takes an entry away.
    pub(super) fn takes(self, value: &Value) -> bool {
        let all = |kind: fn(&Value) -> bool| {
            value.as_object().is_some_and(|map| map.values().all(|value| value.is_null() || kind(value)))
        };
        match self {
            Kind::Flag => value.is_boolean(),
            Kind::Text | Kind::Duration => value.is_string(),
            Kind::Whole => value.is_i64() || value.is_u64(),
            Kind::Number => value.is_number(),
            Kind::List => value.is_array(),
            Kind::Texts => all(Value::is_string),
            Kind::Flags => all(Value::is_boolean),
            Kind::Table(_) => value.is_object(),
            Kind::Any => true,
        }
    }
}

/// The keys, in order.
pub(super) const FIELDS: &[(&str, Kind)] = &[
    ("address", Kind::Text),
    ("allowedUnsafeSysctls", Kind::List),
    ("apiVersion", Kind::Text),
    (
        "authentication",
        Kind::Table(&[
            ("anonymous", Kind::Table(&[("enabled", Kind::Flag)])),
            ("webhook", Kind::Table(&[("cacheTTL", Kind::Duration), ("enabled", Kind::Flag)])),
            ("x509", Kind::Table(&[("clientCAFile", Kind::Text)])),
        ]),
    ),
    (
        "authorization",
        Kind::Table(&[
            ("mode", Kind::Text),
            (
                "webhook",
                Kind::Table(&[
                    ("cacheAuthorizedTTL", Kind::Duration),
                    ("cacheUnauthorizedTTL", Kind::Duration),
                ]),
            ),
        ]),
    ),
    ("cgroupDriver", Kind::Text),
    ("cgroupRoot", Kind::Text),
    ("cgroupsPerQOS", Kind::Flag),
    ("clusterDNS", Kind::List),
    ("clusterDomain", Kind::Text),
    ("configMapAndSecretChangeDetectionStrategy", Kind::Text),
    ("containerLogMaxFiles", Kind::Whole),
    ("containerLogMaxSize", Kind::Text),
    ("containerLogMaxWorkers", Kind::Whole),
    ("containerLogMonitorInterval", Kind::Duration),
    ("containerRuntimeEndpoint", Kind::Text),
    ("contentType", Kind::Text),
    ("cpuCFSQuota", Kind::Flag),
    ("cpuCFSQuotaPeriod", Kind::Duration),
    ("cpuManagerPolicy", Kind::Text),
    ("cpuManagerPolicyOptions", Kind::Texts),
    ("cpuManagerReconcilePeriod", Kind::Duration),
    ("crashLoopBackOff", Kind::Table(&[("maxContainerRestartPeriod", Kind::Duration)])),
    ("enableContentionProfiling", Kind::Flag),
    ("enableControllerAttachDetach", Kind::Flag),
    ("enableDebugFlagsHandler", Kind::Flag),
    ("enableDebuggingHandlers", Kind::Flag),
    ("enableProfilingHandler", Kind::Flag),
    ("enableServer", Kind::Flag),
    ("enableSystemLogHandler", Kind::Flag),
    ("enableSystemLogQuery", Kind::Flag),
    ("enforceNodeAllocatable", Kind::List),
    ("eventBurst", Kind::Whole),
    ("eventRecordQPS", Kind::Whole),
    ("evictionHard", Kind::Texts),
    ("evictionMaxPodGracePeriod", Kind::Whole),
    ("evictionMinimumReclaim", Kind::Texts),
    ("evictionPressureTransitionPeriod", Kind::Duration),
    ("evictionSoft", Kind::Texts),
    ("evictionSoftGracePeriod", Kind::Texts),
    ("failCgroupV1", Kind::Flag),
    ("failSwapOn", Kind::Flag),
    ("featureGates", Kind::Flags),
    ("fileCheckFrequency", Kind::Duration),
    ("hairpinMode", Kind::Text),
    ("healthzBindAddress", Kind::Text),
    ("healthzPort", Kind::Whole),
    ("httpCheckFrequency", Kind::Duration),
    ("imageGCHighThresholdPercent", Kind::Whole),
    ("imageGCLowThresholdPercent", Kind::Whole),
    ("imageMaximumGCAge", Kind::Duration),
    ("imageMinimumGCAge", Kind::Duration),
    ("imagePullCredentialsVerificationPolicy", Kind::Text),
    ("imageServiceEndpoint", Kind::Text),
    ("iptablesDropBit", Kind::Whole),
    ("iptablesMasqueradeBit", Kind::Whole),
    ("kernelMemcgNotification", Kind::Flag),
    ("kind", Kind::Text),
    ("kubeAPIBurst", Kind::Whole),
    ("kubeAPIQPS", Kind::Whole),
    ("kubeletCgroups", Kind::Text),
    ("kubeReserved", Kind::Texts),
    ("kubeReservedCgroup", Kind::Text),
    ("localStorageCapacityIsolation", Kind::Flag),
    (
        "logging",
        Kind::Table(&[
            ("flushFrequency", Kind::Any),
            ("format", Kind::Text),
            ("options", Kind::Any),
            ("verbosity", Kind::Whole),
            ("vmodule", Kind::Any),
        ]),
    ),
    ("makeIPTablesUtilChains", Kind::Flag),
    ("maxOpenFiles", Kind::Whole),
    ("maxParallelImagePulls", Kind::Whole),
    ("maxPods", Kind::Whole),
    ("memoryManagerPolicy", Kind::Text),
    ("memoryReservationPolicy", Kind::Text),
    ("memorySwap", Kind::Table(&[("swapBehavior", Kind::Text)])),
    ("memoryThrottlingFactor", Kind::Number),
    ("mergeDefaultEvictionSettings", Kind::Flag),
    ("nodeLeaseDurationSeconds", Kind::Whole),
    ("nodeStatusMaxImages", Kind::Whole),
    ("nodeStatusReportFrequency", Kind::Duration),
    ("nodeStatusUpdateFrequency", Kind::Duration),
    ("oomScoreAdj", Kind::Whole),
    ("podCIDR", Kind::Text),
    ("podLogsDir", Kind::Text),
    ("podPidsLimit", Kind::Whole),
    ("podsPerCore", Kind::Whole),
    ("port", Kind::Whole),
    ("preloadedImagesVerificationAllowlist", Kind::List),
    ("protectKernelDefaults", Kind::Flag),
    ("providerID", Kind::Text),
    ("qosReserved", Kind::Texts),
    ("readOnlyPort", Kind::Whole),
    ("registerNode", Kind::Flag),
    ("registerWithTaints", Kind::List),
    ("registryBurst", Kind::Whole),
    ("registryPullQPS", Kind::Whole),
    ("reservedMemory", Kind::List),
    ("reservedSystemCPUs", Kind::Text),
    ("resolvConf", Kind::Text),
    ("rotateCertificates", Kind::Flag),
    ("runOnce", Kind::Flag),
    ("runtimeRequestTimeout", Kind::Duration),
    ("seccompDefault", Kind::Flag),
    ("serializeImagePulls", Kind::Flag),
    ("serverTLSBootstrap", Kind::Flag),
    ("showHiddenMetricsForVersion", Kind::Text),
    ("shutdownGracePeriod", Kind::Duration),
    ("shutdownGracePeriodByPodPriority", Kind::List),
    ("shutdownGracePeriodCriticalPods", Kind::Duration),
    ("singleProcessOOMKill", Kind::Flag),
    ("staticPodPath", Kind::Text),
    ("staticPodURL", Kind::Text),
    ("staticPodURLHeader", Kind::Any),
    ("streamingConnectionIdleTimeout", Kind::Duration),
    ("syncFrequency", Kind::Duration),
    ("systemCgroups", Kind::Text),
    ("systemReserved", Kind::Texts),
    ("systemReservedCgroup", Kind::Text),
    ("tlsCertFile", Kind::Text),
    ("tlsCipherSuites", Kind::List),
    ("tlsCurvePreferences", Kind::List),
    ("tlsMinVersion", Kind::Text),
    ("tlsPrivateKeyFile", Kind::Text),
    ("topologyManagerPolicy", Kind::Text),
    ("topologyManagerPolicyOptions", Kind::Texts),
    ("topologyManagerScope", Kind::Text),
    ("tracing", Kind::Table(&[("endpoint", Kind::Text), ("samplingRatePerMillion", Kind::Whole)])),
    ("userNamespaces", Kind::Table(&[("idsPerPod", Kind::Whole)])),
    ("volumePluginDir", Kind::Text),
    ("volumeStatsAggPeriod", Kind::Duration),
];

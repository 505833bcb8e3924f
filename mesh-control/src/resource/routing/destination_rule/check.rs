//! What must hold between the fields of a DestinationRule.

use super::{
    ConnectionPool, ConsistentHash, Cookie, DestinationRule, H2Upgrade, LoadBalancer, Locality, OutlierDetection,
    Simple, Tls, TlsMode, TrafficPolicy,
};
use crate::resource::meta;
use crate::resource::routing::values::{header, host, host_pattern, visibility};
use crate::resource::routing::{Check, Spec};

/// Entries of a list that waypoints read.
const MOST: usize = 1000;
/// Ports with settings of their own.
const MOST_PORTS: usize = 4096;
/// Of a table of maglev.
const LARGEST_TABLE: u64 = 5_000_011;

impl Spec for DestinationRule {
    fn check(&self, check: &mut Check<'_>) {
        check.must("spec.host", host_pattern(&self.host));
        check.each("spec.exportTo", &self.export_to, visibility);
        if let Some(policy) = &self.traffic_policy {
            policy.check("spec.trafficPolicy", check);
        }
        check.once(self.subsets.iter().enumerate().map(|(i, s)| (format!("spec.subsets[{i}].name"), &s.name)));
        for (index, subset) in self.subsets.iter().enumerate() {
            let field = format!("spec.subsets[{index}]");
            check.must(
                format!("{field}.name"),
                meta::label(&subset.name.to_ascii_lowercase()).map_err(|why| format!("{:?}: {why}", subset.name)),
            );
            check.labels(&format!("{field}.labels"), &subset.labels);
            if let Some(policy) = &subset.traffic_policy {
                policy.check(&format!("{field}.trafficPolicy"), check);
            }
        }
        if let Some(selector) = &self.workload_selector {
            check.labels("spec.workloadSelector.matchLabels", &selector.match_labels);
        }
        if self.host.starts_with('*') && !self.subsets.is_empty() {
            check.warning("spec.subsets", "a host with a wildcard is no place that routes can name", "");
        }
    }
}

impl TrafficPolicy {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        let outlier = self.outlier_detection.is_some();
        parts(field, &self.load_balancer, &self.connection_pool, &self.outlier_detection, &self.tls, outlier, check);
        check.few(format!("{field}.portLevelSettings"), self.port_level_settings.len(), MOST_PORTS);
        let ports = self.port_level_settings.iter().enumerate();
        let numbers = ports
            .clone()
            .filter_map(|(i, own)| Some((format!("{field}.portLevelSettings[{i}].port.number"), own.port?.number)));
        check.once(numbers);
        for (index, own) in ports {
            let field = format!("{field}.portLevelSettings[{index}]");
            match own.port {
                None => check.error(&field, "the field `port` is missing", "write `port: {number: 80}`"),
                Some(port) => check.port(format!("{field}.port.number"), port.number),
            }
            let outlier = own.outlier_detection.is_some() || outlier;
            parts(&field, &own.load_balancer, &own.connection_pool, &own.outlier_detection, &own.tls, outlier, check);
        }
        if let Some(tunnel) = &self.tunnel {
            let field = format!("{field}.tunnel");
            if tunnel.protocol.as_ref().is_some_and(|protocol| !["CONNECT", "POST"].contains(&protocol.as_str())) {
                check.error(format!("{field}.protocol"), "neither CONNECT nor POST", "");
            }
            check.must(format!("{field}.targetHost"), host(&tunnel.target_host));
            check.port(format!("{field}.targetPort"), tunnel.target_port);
        }
        if let Some(percent) = self.retry_budget.as_ref().and_then(|budget| budget.percent) {
            check.percent(format!("{field}.retryBudget.percent"), percent);
        }
    }
}

fn parts(
    field: &str,
    balancer: &Option<LoadBalancer>,
    pool: &Option<ConnectionPool>,
    outlier: &Option<OutlierDetection>,
    tls: &Option<Tls>,
    ejects: bool,
    check: &mut Check<'_>,
) {
    if let Some(balancer) = balancer {
        balancer.check(&format!("{field}.loadBalancer"), ejects, check);
    }
    if let Some(pool) = pool {
        pool.check(&format!("{field}.connectionPool"), check);
    }
    if let Some(outlier) = outlier {
        outlier.check(&format!("{field}.outlierDetection"), check);
    }
    if let Some(tls) = tls {
        tls.check(&format!("{field}.tls"), check);
    }
}

impl LoadBalancer {
    fn check(&self, field: &str, ejects: bool, check: &mut Check<'_>) {
        check.one_of(field, &[("simple", self.simple.is_some()), ("consistentHash", self.consistent_hash.is_some())]);
        if self.simple == Some(Simple::LeastConn) {
            check.warning(format!("{field}.simple"), "an old name", "write LEAST_REQUEST");
        }
        if let Some(hash) = &self.consistent_hash {
            hash.check(&format!("{field}.consistentHash"), check);
        }
        if let Some(locality) = &self.locality_lb_setting {
            locality.check(&format!("{field}.localityLbSetting"), ejects, check);
        }
        if self.zone_aware_lb_setting {
            check.warning(
                format!("{field}.zoneAwareLbSetting"),
                "not supported, it has no effect",
                "use localityLbSetting",
            );
        }
        let warms = self.warmup.is_some() || self.warmup_duration_secs.is_some();
        let fits = matches!(
            self.simple,
            None | Some(Simple::RoundRobin | Simple::LeastRequest | Simple::LeastConn | Simple::Unspecified)
        );
        if warms && (!fits || self.consistent_hash.is_some()) {
            check.error(
                format!("{field}.warmup"),
                "only ROUND_ROBIN and LEAST_REQUEST give a new endpoint little at first",
                "",
            );
        }
        if let Some(warmup) = &self.warmup {
            check.time(format!("{field}.warmup.duration"), Some(warmup.duration));
            if let Some(percent) = warmup.minimum_percent {
                check.percent(format!("{field}.warmup.minimumPercent"), percent);
            }
            if warmup.aggression.is_some_and(|aggression| aggression < 1.0) {
                check.error(format!("{field}.warmup.aggression"), "less than 1", "");
            }
        }
    }
}

impl ConsistentHash {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        let keys = [
            ("httpHeaderName", self.http_header_name.is_some()),
            ("httpCookie", self.http_cookie.is_some()),
            ("useSourceIp", self.use_source_ip == Some(true)),
            ("httpQueryParameterName", self.http_query_parameter_name.is_some()),
        ];
        if check.one_of(field, &keys) == 0 {
            check.error(
                field,
                "it does not say by what",
                "write httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName",
            );
        }
        if let Some(name) = &self.http_header_name {
            check.must(format!("{field}.httpHeaderName"), header(name));
        }
        if let Some(name) = &self.http_query_parameter_name {
            check.must(format!("{field}.httpQueryParameterName"), meta::told(name));
        }
        if let Some(cookie) = &self.http_cookie {
            cookie.check(&format!("{field}.httpCookie"), check);
        }
        check.one_of(field, &[("ringHash", self.ring_hash.is_some()), ("maglev", self.maglev.is_some())]);
        if let Some(size) = self.maglev.as_ref().and_then(|maglev| maglev.table_size)
            && (size >= LARGEST_TABLE || !is_prime(size))
        {
            check.error(
                format!("{field}.maglev.tableSize"),
                format!("{size} is no prime below {LARGEST_TABLE}"),
                "65537 is one",
            );
        }
    }
}

impl Cookie {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        check.must(format!("{field}.name"), cookie_name(&self.name));
        if let Some(path) = &self.path {
            check.must(format!("{field}.path"), cookie_text(path));
        }
        check.few(format!("{field}.attributes"), self.attributes.len(), MOST);
        for (index, one) in self.attributes.iter().enumerate() {
            let field = format!("{field}.attributes[{index}]");
            check.must(format!("{field}.name"), cookie_name(&one.name));
            if let Some(value) = &one.value {
                check.must(format!("{field}.value"), cookie_text(value));
            }
        }
    }
}

/// A token, as names of headers are.
fn cookie_name(text: &str) -> Result<(), String> {
    header(text).map_err(|_| format!("{text:?} is no name of a cookie"))?;
    meta::told(text)
}

/// It cannot end what is written around it.
fn cookie_text(text: &str) -> Result<(), String> {
    match text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b';') {
        true => meta::told(text),
        false => Err(format!("{text:?} cannot be part of a cookie")),
    }
}

fn is_prime(number: u64) -> bool {
    number > 1 && (2..).take_while(|d| d * d <= number).all(|d| !number.is_multiple_of(d))
}

impl Locality {
    /// `ejects`: something finds endpoints ill.
    pub(in crate::resource) fn check(&self, field: &str, ejects: bool, check: &mut Check<'_>) {
        let ways = [
            ("distribute", !self.distribute.is_empty()),
            ("failover", !self.failover.is_empty()),
            ("failoverPriority", !self.priority.is_empty()),
        ];
        // Failover and its priority go together.
        check.one_of(field, &[ways[0], ("failover", ways[1].1 || ways[2].1)]);
        if ways[1].1 && ways[2].1 {
            let help = "leave one of the two out; labels of regions may stand among the others in `failoverPriority`";
            check.warning(
                format!("{field}.failover"),
                "known, not in force: `failoverPriority` says which come first",
                help,
            );
        }
        for (name, count) in [
            ("distribute", self.distribute.len()),
            ("failover", self.failover.len()),
            ("failoverPriority", self.priority.len()),
        ] {
            check.few(format!("{field}.{name}"), count, MOST);
        }
        for (index, one) in self.distribute.iter().enumerate() {
            check.few(format!("{field}.distribute[{index}].to"), one.to.len(), MOST);
            let sum: u64 = one.to.values().map(|share| u64::from(*share)).sum();
            if sum != 100 {
                check.error(
                    format!("{field}.distribute[{index}].to"),
                    format!("the shares are {sum} together"),
                    "make them 100",
                );
            }
            if one.from.is_empty() {
                check.error(format!("{field}.distribute[{index}]"), "the field `from` is missing", "");
            }
            for place in std::iter::once(&one.from).chain(one.to.keys()) {
                check.must(format!("{field}.distribute[{index}]"), meta::told(place));
            }
        }
        for (index, one) in self.failover.iter().enumerate() {
            let field = format!("{field}.failover[{index}]");
            if one.from == one.to || one.from.is_empty() || one.to.is_empty() {
                check.error(&field, "it leads from a region to the same one", "write two regions, `from` and `to`");
            }
            if [&one.from, &one.to].iter().any(|region| region.contains(['/', '*'])) {
                check.error(&field, "it names regions, without zones and wildcards", "");
            }
            check.must(format!("{field}.from"), meta::told(&one.from));
            check.must(format!("{field}.to"), meta::told(&one.to));
        }
        check.each(&format!("{field}.failoverPriority"), &self.priority, |label| {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            meta::pair(key, value)
        });
        if (ways[1].1 || ways[2].1) && !ejects {
            check.warning(
                field,
                "nobody leaves a region as long as no endpoint is found to be ill",
                "add outlierDetection",
            );
        }
    }
}

impl ConnectionPool {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        let counts = [
            ("tcp.maxConnections", self.tcp.max_connections),
            ("http.http1MaxPendingRequests", self.http.http1_max_pending_requests),
            ("http.http2MaxRequests", self.http.http2_max_requests),
            ("http.maxRequestsPerConnection", self.http.max_requests_per_connection),
            ("http.maxRetries", self.http.max_retries),
            ("http.maxConcurrentStreams", self.http.max_concurrent_streams),
        ];
        for (name, count) in counts.into_iter().filter(|(_, count)| count.is_some_and(|count| count < 0)) {
            check.error(format!("{field}.{name}"), format!("{} is less than none", count.unwrap_or_default()), "");
        }
        check.time(format!("{field}.tcp.connectTimeout"), self.tcp.connect_timeout);
        if self.http.use_client_protocol == Some(true) && self.http.h2_upgrade_policy == Some(H2Upgrade::Upgrade) {
            check.error(
                format!("{field}.http"),
                "useClientProtocol and h2UpgradePolicy: UPGRADE exclude each other",
                "keep one of them",
            );
        }
        if self.http.http2_keep_alive {
            check.warning(
                format!("{field}.http.http2KeepAlive"),
                "not supported, it has no effect",
                "use tcpKeepalive",
            );
        }
    }
}

impl OutlierDetection {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        if self.consecutive_errors.is_some() {
            check.warning(format!("{field}.consecutiveErrors"), "an old name", "write consecutive5xxErrors");
        }
        for (name, percent) in
            [("maxEjectionPercent", self.max_ejection_percent), ("minHealthPercent", self.min_health_percent)]
        {
            if let Some(percent) = percent {
                check.percent(format!("{field}.{name}"), f64::from(percent));
            }
        }
        check.time(format!("{field}.interval"), self.interval);
        check.time(format!("{field}.baseEjectionTime"), self.base_ejection_time);
        if self.consecutive_local_origin_failures.is_some_and(|n| n > 0)
            && self.split_external_local_origin_errors != Some(true)
        {
            check.error(
                format!("{field}.consecutiveLocalOriginFailures"),
                "it is counted only with splitExternalLocalOriginErrors: true",
                "",
            );
        }
        let codes = &self.outlier_detection_http_error_codes;
        check.few(format!("{field}.outlierDetectionHttpErrorCodes"), codes.len(), MOST);
        for (index, code) in codes.iter().enumerate() {
            if !(200..=599).contains(code) {
                check.error(
                    format!("{field}.outlierDetectionHttpErrorCodes[{index}]"),
                    format!("{code} is not the status of an answer"),
                    "",
                );
            }
        }
    }
}

impl Tls {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        let files = [&self.client_certificate, &self.private_key, &self.ca_certificates, &self.ca_crl];
        let has_files = files.iter().any(|file| file.is_some());
        match self.mode {
            Some(TlsMode::IstioMutual) if has_files || self.credential_name.is_some() => {
                check.error(field, "ISTIO_MUTUAL uses the mesh's certificates", "delete the files and credentialName");
            }
            Some(TlsMode::Mutual)
                if self.credential_name.is_none()
                    && (self.client_certificate.is_none() || self.private_key.is_none()) =>
            {
                check.error(
                    field,
                    "MUTUAL needs a certificate to show",
                    "add credentialName, or clientCertificate and privateKey",
                );
            }
            _ => {}
        }
        if self.credential_name.is_some() && has_files {
            check.error(format!("{field}.credentialName"), "a Secret and files exclude each other", "keep one of them");
        }
        if let Some(sni) = &self.sni {
            check.must(format!("{field}.sni"), meta::told(sni));
        }
        check.few(format!("{field}.subjectAltNames"), self.subject_alt_names.len(), MOST);
        check.each(&format!("{field}.subjectAltNames"), &self.subject_alt_names, meta::told);
        if self.mode.is_none() && *self != Tls::default() {
            check.warning(field, "without `mode` none of it counts", "write `mode: SIMPLE` or MUTUAL");
        }
    }
}

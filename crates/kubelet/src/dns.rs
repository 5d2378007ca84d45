//! `resolv.conf` of a pod by its `dnsPolicy` and `dnsConfig`.

use cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;

use crate::KubeletConfig;
use crate::podutil::{self, spec};

const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

/// The node's `resolv.conf`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    pub(crate) fn parse(text: &str) -> Self {
        let mut resolver = Resolver::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => resolver.servers.extend(words.next()),
                Some("search") => resolver.searches = words.collect(),
                Some("options") => resolver.options.extend(words),
                _ => {}
            }
        }
        resolver
    }

    /// What the pod's `resolv.conf` holds.
    pub(crate) fn of_pod(&self, config: &KubeletConfig, pod: &Pod) -> DnsConfig {
        let policy = spec(pod).dns_policy.as_deref().unwrap_or("ClusterFirst");
        let cluster = match policy {
            "ClusterFirstWithHostNet" => true,
            "ClusterFirst" => !podutil::host_network(pod),
            _ => false,
        } && !config.cluster_dns.is_empty();
        let mut dns = if policy == "None" {
            DnsConfig::default()
        } else if cluster {
            let domain = &config.cluster_domain;
            let mut searches = vec![
                format!("{}.svc.{domain}", podutil::namespace(pod)),
                format!("svc.{domain}"),
                domain.clone(),
            ];
            searches.extend(self.searches.iter().cloned());
            DnsConfig {
                servers: config.cluster_dns.iter().map(ToString::to_string).collect(),
                searches,
                options: vec!["ndots:5".to_owned()],
            }
        } else {
            DnsConfig {
                servers: self.servers.clone(),
                searches: self.searches.clone(),
                options: self.options.clone(),
            }
        };
        if let Some(own) = &spec(pod).dns_config {
            dns.servers.extend(own.nameservers.iter().flatten().cloned());
            dns.searches.extend(own.searches.iter().flatten().cloned());
            for option in own.options.iter().flatten() {
                let Some(name) = &option.name else { continue };
                let text =
                    option.value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}:{value}"));
                dns.options.retain(|known| known.split(':').next() != Some(name.as_str()));
                dns.options.push(text);
            }
        }
        keep_first(&mut dns.servers, MAX_SERVERS);
        keep_first(&mut dns.searches, MAX_SEARCHES);
        dns
    }
}

fn keep_first(list: &mut Vec<String>, most: usize) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
    list.truncate(most);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let resolver =
            Resolver::parse("# c\nnameserver 192.0.2.53\nsearch a.example b.example\noptions rotate\n");
        assert_eq!(resolver.servers, ["192.0.2.53"]);
        assert_eq!(resolver.searches, ["a.example", "b.example"]);
        assert_eq!(resolver.options, ["rotate"]);
    }
}

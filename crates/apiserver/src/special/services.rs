//! Services: cluster addresses, IP families and node ports. Writes of Services go one after another, so that what is taken
//! can be read off the caches; every address taken is told by an IPAddress object, as the reference's allocator tells it.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use ipnet::IpNet;
use rand::Rng;
use serde_json::Value;
use tokio::sync::Mutex;

use super::addresses::{self, family_of};
use super::{Special, Task, Undo};
use crate::server::Server;
use crate::verbs::meta;
use crate::{Config, FieldError, FieldErrorKind, Status};

pub static ROW: Special = Special {
    returns_deleted: true,
    begin_create: Some(begin_create),
    begin_update: Some(begin_update),
    after_delete: Some(after_delete),
    ..Special::GENERIC
};

/// The ranges that Services take addresses and ports from.
pub struct Allocators {
    ranges: Vec<IpNet>,
    ports: RangeInclusive<u16>,
    turn: Arc<Mutex<()>>,
}

impl Allocators {
    pub fn new(config: &Config) -> Self {
        Self {
            ranges: config.service_cidrs.clone(),
            ports: config.node_port_range.clone(),
            turn: Arc::default(),
        }
    }

    fn range(&self, family: &str) -> Option<&IpNet> {
        self.ranges.iter().find(|range| family_of(range.addr()) == family)
    }

    /// Keeps writes of Services waiting while it is held.
    pub async fn turn(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.turn.clone().lock_owned().await
    }

    fn primary(&self) -> &'static str {
        self.ranges.first().map_or("IPv4", |range| family_of(range.addr()))
    }
}

fn other(family: &str) -> &'static str {
    if family == "IPv4" { "IPv6" } else { "IPv4" }
}

fn text<'a>(service: &'a Value, field: &str) -> &'a str {
    service.get("spec").and_then(|s| s.get(field)).and_then(Value::as_str).unwrap_or_default()
}

fn texts(service: &Value, field: &str) -> Vec<String> {
    let list = service.get("spec").and_then(|s| s.get(field)).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn set(service: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert(field.to_owned(), value.into());
    }
}

fn unset(service: &mut Value, field: &str) {
    if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove(field);
    }
}

fn needs_address(service: &Value) -> bool {
    matches!(text(service, "type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn needs_ports(service: &Value) -> bool {
    match text(service, "type") {
        "NodePort" => true,
        "LoadBalancer" => service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn needs_health_port(service: &Value) -> bool {
    text(service, "type") == "LoadBalancer" && text(service, "externalTrafficPolicy") == "Local"
}

fn invalid(service: &Value, errors: &[FieldError]) -> Status {
    Status::invalid("", "Service", meta::text(service, "name"), errors)
}

fn error(field: &str, value: impl Into<Value>, detail: impl Into<String>) -> FieldError {
    FieldError::new(FieldErrorKind::Invalid, field, value, detail)
}

fn begin_create<'a>(
    server: &'a Server,
    service: &'a mut Value,
    _dry_run: bool,
) -> BoxFuture<'a, Result<Undo, Status>> {
    async move { begin(server, service, None).await }.boxed()
}

fn begin_update<'a>(
    server: &'a Server,
    service: &'a mut Value,
    old: &'a Value,
    _dry_run: bool,
) -> BoxFuture<'a, Result<Undo, Status>> {
    async move {
        carry(service, old);
        begin(server, service, Some(old)).await
    }
    .boxed()
}

async fn begin(server: &Server, service: &mut Value, old: Option<&Value>) -> Result<Undo, Status> {
    let allocators = &server.allocators;
    let guard = allocators.turn.clone().lock_owned().await;
    server.registry.fresh().await?;
    synchronize(service, old);
    families(allocators, service, old)?;
    let mut undo = Undo { guard: Some(guard), ..Undo::default() };
    let was: Vec<String> = old.map(|o| texts(o, "clusterIPs")).unwrap_or_default();
    addresses(server, service, &was)?;
    let is = texts(service, "clusterIPs");
    let owner = (meta::text(service, "namespace").to_owned(), meta::text(service, "name").to_owned());
    let fresh: Vec<String> = is.iter().filter(|ip| *ip != "None" && !was.contains(ip)).cloned().collect();
    let released: Vec<String> = was.iter().filter(|ip| *ip != "None" && !is.contains(ip)).cloned().collect();
    if !fresh.is_empty() {
        undo.on_success.push(Task::TakeAddresses(fresh, owner));
    }
    if !released.is_empty() {
        undo.on_success.push(Task::ReleaseAddresses(released));
    }
    node_ports(server, service, old)?;
    Ok(undo)
}

/// What the client may leave out of an update.
fn carry(new: &mut Value, old: &Value) {
    if needs_address(old) && needs_address(new) {
        if text(new, "clusterIP").is_empty() && !text(old, "clusterIP").is_empty() {
            let ip = text(old, "clusterIP").to_owned();
            set(new, "clusterIP", ip);
        }
        if texts(new, "clusterIPs").is_empty() && text(new, "clusterIP") == text(old, "clusterIP") {
            set(new, "clusterIPs", texts(old, "clusterIPs"));
        }
    }
    if needs_ports(old) && needs_ports(new) {
        carry_ports(new, old);
    }
    if needs_health_port(old) && needs_health_port(new) && number(new, "healthCheckNodePort") == 0 {
        let port = number(old, "healthCheckNodePort");
        set(new, "healthCheckNodePort", port);
    }
}

fn number(service: &Value, field: &str) -> u64 {
    service.get("spec").and_then(|s| s.get(field)).and_then(Value::as_u64).unwrap_or(0)
}

fn port_key(port: &Value) -> (String, u64) {
    let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP").to_owned();
    (protocol, port.get("port").and_then(Value::as_u64).unwrap_or(0))
}

fn node_port(port: &Value) -> u64 {
    port.get("nodePort").and_then(Value::as_u64).unwrap_or(0)
}

fn ports(service: &Value) -> &[Value] {
    service.pointer("/spec/ports").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// By the name of the port: other properties may have changed.
fn carry_ports(new: &mut Value, old: &Value) {
    let of = |service: &Value| -> HashSet<u64> {
        ports(service).iter().map(node_port).filter(|p| *p != 0).collect()
    };
    let kept: HashSet<u64> = of(new).intersection(&of(old)).copied().collect();
    let name = |port: &Value| port.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = new.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
    for port in list.into_iter().flatten().filter(|p| node_port(p) == 0) {
        let before = ports(old).iter().find(|p| name(p) == name(port)).map(node_port);
        if let Some(before) = before.filter(|p| *p != 0 && !kept.contains(p)) {
            port["nodePort"] = before.into();
        }
    }
}

/// Keeps clusterIP and clusterIPs in step, whichever of them the client knows.
fn synchronize(service: &mut Value, old: Option<&Value>) {
    let (single, many) = (text(service, "clusterIP").to_owned(), texts(service, "clusterIPs"));
    let Some(old) = old else {
        if !single.is_empty() && many.is_empty() {
            set(service, "clusterIPs", vec![single]);
        }
        return;
    };
    let (old_single, old_many) = (text(old, "clusterIP"), texts(old, "clusterIPs"));
    let (same_single, same_many) = (single == old_single, many == old_many);
    if !same_single && same_many {
        if single.is_empty() {
            unset(service, "clusterIPs");
        } else {
            set(service, "clusterIPs", vec![single]);
        }
    } else if !same_many && same_single && many.is_empty() && !single.is_empty() {
        set(service, "clusterIPs", vec![single]);
    }
}

fn families(allocators: &Allocators, service: &mut Value, old: Option<&Value>) -> Result<(), Status> {
    if !needs_address(service) {
        return Ok(());
    }
    let headless = text(service, "clusterIP") == "None";
    let selector = service.pointer("/spec/selector").and_then(Value::as_object);
    let selectorless = selector.is_none_or(|s| s.is_empty());
    if text(service, "ipFamilyPolicy").is_empty() {
        let before = old.map(|o| text(o, "ipFamilyPolicy")).unwrap_or_default();
        let policy = match before {
            "" if headless && selectorless => "RequireDualStack",
            "" => "SingleStack",
            before => before,
        };
        let policy = policy.to_owned();
        set(service, "ipFamilyPolicy", policy);
    }
    let policy = text(service, "ipFamilyPolicy").to_owned();
    let (mut ips, mut families) = (texts(service, "clusterIPs"), texts(service, "ipFamilies"));
    let mut errors = Vec::new();
    let field = "spec.ipFamilyPolicy";
    if let Some(old) = old {
        let (old_ips, old_families) = (texts(old, "clusterIPs"), texts(old, "ipFamilies"));
        if policy == "SingleStack" {
            if old_ips == ips {
                ips.truncate(1);
            }
            if old_families == families {
                families.truncate(1);
            }
        } else {
            if ips.len() < old_ips.len() && !ips.is_empty() {
                let detail = "must be 'SingleStack' to release the secondary cluster IP";
                errors.push(error(field, policy.as_str(), detail));
            }
            if families.len() < old_families.len() && !families.is_empty() && old_families.len() == 2 {
                let detail = "must be 'SingleStack' to release the secondary IP family";
                errors.push(error(field, policy.as_str(), detail));
            }
            if families.is_empty() {
                families = old_families;
            }
        }
    }
    if policy == "SingleStack" {
        for (many, what) in [(&ips, "cluster IPs"), (&families, "IP families")] {
            if many.len() == 2 {
                let detail = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                );
                errors.push(error(field, policy.as_str(), detail));
            }
        }
    }
    for (i, ip) in ips.iter().enumerate().take_while(|(_, ip)| *ip != "None") {
        if i < families.len() {
            continue;
        }
        let Ok(address) = ip.parse::<IpAddr>() else { continue };
        let family = family_of(address);
        if allocators.range(family).is_some() {
            families.push(family.to_owned());
        } else {
            let detail = format!("{family} is not configured on this cluster");
            errors.push(error(&format!("spec.clusterIPs[{i}]"), ips.clone(), detail));
        }
    }
    if !errors.is_empty() {
        return Err(invalid(service, &errors));
    }
    if headless && selectorless {
        if families.is_empty() {
            families.push(allocators.primary().to_owned());
        }
        if families.len() < 2 && policy != "SingleStack" {
            families.push(other(&families[0]).to_owned());
        }
    } else {
        if policy == "RequireDualStack" && allocators.ranges.len() < 2 {
            errors.push(error(
                field,
                policy.as_str(),
                "this cluster is not configured for dual-stack services",
            ));
        }
        for (i, family) in families.iter().enumerate() {
            if matches!(family.as_str(), "IPv4" | "IPv6") && allocators.range(family).is_none() {
                let field = format!("spec.ipFamilies[{i}]");
                errors.push(error(&field, family.as_str(), "not configured on this cluster"));
            }
        }
        if families.is_empty() {
            families.push(allocators.primary().to_owned());
        }
        if policy != "SingleStack" && families.len() == 1 && allocators.ranges.len() == 2 {
            families.push(other(&families[0]).to_owned());
        }
    }
    if !errors.is_empty() {
        return Err(invalid(service, &errors));
    }
    if !ips.is_empty() {
        set(service, "clusterIPs", ips);
    }
    set(service, "ipFamilies", families);
    Ok(())
}

/// Fills in the addresses that are missing, and checks those that are given.
fn addresses(server: &Server, service: &mut Value, was: &[String]) -> Result<(), Status> {
    let mut ips = texts(service, "clusterIPs");
    if !needs_address(service) || ips.first().is_some_and(|ip| ip == "None") {
        return Ok(());
    }
    let families = texts(service, "ipFamilies");
    let taken = |ip: IpAddr| {
        let row = server.registry.any("networking.k8s.io", "ipaddresses");
        row.is_some_and(|row| row.cache.get(&ip.to_string()).is_some())
    };
    for (i, family) in families.iter().enumerate() {
        let ranges = addresses::ranges(server, &server.allocators.ranges, family);
        if server.allocators.range(family).is_none() && ranges.is_empty() {
            continue;
        }
        match ips.get(i) {
            Some(given) if was.contains(given) => {}
            Some(given) => {
                let why = match given.parse::<IpAddr>() {
                    // The form of the address is validated with the rest of the object.
                    Err(_) => continue,
                    Ok(ip) if !ranges.iter().any(|range| usable(range, ip)) => {
                        format!(
                            "failed to allocate IP {given}: the provided network does not match the current range or IP is not in the valid range"
                        )
                    }
                    Ok(ip) if taken(ip) => {
                        format!("failed to allocate IP {given}: provided IP is already allocated")
                    }
                    Ok(_) => continue,
                };
                return Err(invalid(service, &[error("spec.clusterIPs", ips.clone(), why)]));
            }
            None => {
                let free = ranges.iter().find_map(|range| choose(range, &taken));
                let ip =
                    free.ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))?;
                ips.push(ip.to_string());
            }
        }
    }
    if let Some(first) = ips.first().cloned() {
        set(service, "clusterIP", first);
    }
    set(service, "clusterIPs", ips);
    Ok(())
}

/// Not the network's own address, not IPv4's broadcast.
fn usable(range: &IpNet, ip: IpAddr) -> bool {
    range.contains(&ip) && ip != range.network() && !(ip.is_ipv4() && ip == range.broadcast())
}

fn nth(range: &IpNet, offset: u64) -> IpAddr {
    match range.network() {
        IpAddr::V4(base) => {
            IpAddr::V4(Ipv4Addr::from_bits(base.to_bits() + u32::try_from(offset).unwrap_or(0)))
        }
        IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(base.to_bits() + u128::from(offset))),
    }
}

/// A free address: from the upper part at random, then from the lower part, which is left for addresses given by hand.
fn choose(range: &IpNet, taken: &dyn Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len()).min(63);
    let last = (1u64 << bits) - if range.addr().is_ipv4() { 2 } else { 1 };
    let lower = (last / 16).clamp(16, 256).min(last);
    let mut rng = rand::rng();
    let find = |from: u64, to: u64, start: u64| {
        (start..=to).chain(from..start).map(|n| nth(range, n)).find(|ip| !taken(*ip))
    };
    let upper = (lower < last).then(|| {
        let start = rng.random_range(lower + 1..=last);
        find(lower + 1, last, start)
    });
    upper.flatten().or_else(|| find(1, lower, 1))
}

/// Fills in the node ports that are missing, and checks those that are given.
fn node_ports(server: &Server, service: &mut Value, old: Option<&Value>) -> Result<(), Status> {
    let health = needs_health_port(service);
    if !needs_ports(service) && !health {
        return Ok(());
    }
    let own: HashSet<u64> = old.map(|o| ports(o).iter().map(node_port).collect()).unwrap_or_default();
    let old_health = old.map_or(0, |o| number(o, "healthCheckNodePort"));
    let uid = meta::text(service, "uid").to_owned();
    let mut taken: HashSet<u64> = HashSet::new();
    if let Some(row) = server.registry.any("", "services") {
        for object in row.cache.list("", None).0 {
            let Ok(value) = object.value() else { continue };
            if meta::text(&value, "uid") != uid {
                taken.extend(ports(&value).iter().map(node_port));
                taken.insert(number(&value, "healthCheckNodePort"));
            }
        }
    }
    let range = server.allocators.ports.clone();
    let allowed = |port: u64| u16::try_from(port).is_ok_and(|p| range.contains(&p));
    let mut given: Vec<(String, u64)> = Vec::new();
    let mut errors = Vec::new();
    for (i, port) in ports(service).iter().enumerate().filter(|(_, p)| node_port(p) != 0) {
        let (number, protocol) = (node_port(port), port_key(port).0);
        let field = format!("spec.ports[{i}].nodePort");
        if !own.contains(&number) && !allowed(number) {
            let detail = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                range.start(),
                range.end()
            );
            errors.push(error(&field, number, detail));
        } else if taken.contains(&number) || given.contains(&(protocol.clone(), number)) {
            errors.push(error(&field, number, "provided port is already allocated"));
        }
        given.push((protocol, number));
    }
    if !errors.is_empty() {
        return Err(invalid(service, &errors));
    }
    taken.extend(given.iter().map(|(_, port)| *port));
    let mut rng = rand::rng();
    let mut choose = |taken: &mut HashSet<u64>| {
        let (first, last) = (u64::from(*range.start()), u64::from(*range.end()));
        let start = rng.random_range(first..=last);
        let port = (start..=last).chain(first..start).find(|p| !taken.contains(p));
        if let Some(port) = port {
            taken.insert(port);
        }
        port.ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))
    };
    if needs_ports(service) {
        let mut chosen: Vec<((String, u64), u64)> = Vec::new();
        let list = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
        for port in list.into_iter().flatten().filter(|p| node_port(p) == 0).collect::<Vec<_>>() {
            // One number port under several protocols gets one node port.
            let (protocol, number) = port_key(port);
            let shared = chosen.iter().find(|((p, n), _)| *n == number && *p != protocol).map(|(_, c)| *c);
            let node = match shared {
                Some(node) => node,
                None => choose(&mut taken)?,
            };
            chosen.push(((protocol, number), node));
            port["nodePort"] = node.into();
        }
    }
    if health {
        match number(service, "healthCheckNodePort") {
            0 => {
                let port = choose(&mut taken)?;
                set(service, "healthCheckNodePort", port);
            }
            port if port != old_health && taken.contains(&port) => {
                let detail = format!(
                    "failed to allocate requested HealthCheck NodePort {port}: provided port is already allocated"
                );
                return Err(Status::internal(detail));
            }
            _ => {}
        }
    }
    Ok(())
}

fn after_delete<'a>(server: &'a Server, service: &'a Value) -> BoxFuture<'a, ()> {
    async move {
        let ips = texts(service, "clusterIPs").into_iter().filter(|ip| ip != "None").collect();
        Task::ReleaseAddresses(ips).run(server).await;
    }
    .boxed()
}

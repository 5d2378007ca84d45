//! The API server alone under load, beside the reference in the same run where that is given. TLS is on in all measures; the
//! load runs on the same machine.

pub mod client;
mod custom;
mod load;
mod memory;
pub mod target;

use std::time::Duration;

use target::Target;

/// The names of the measures.
pub const NAMES: [&str; 9] =
    ["creates", "create", "gets", "lists", "deliveries", "custom", "api-idle", "api-pods", "watches"];

/// One line of the table.
pub struct Figure {
    pub what: &'static str,
    pub value: f64,
    pub unit: &'static str,
    /// Beside the value, in words.
    pub note: String,
    pub bar: &'static str,
}

/// Measures what is named at Carrack and, if there is one, at the reference.
pub async fn run(carrack: &str, reference: Option<Target>, names: &[String]) -> anyhow::Result<()> {
    let wanted = |name: &str| names.is_empty() || names.iter().any(|one| one == name || one == "api");
    let mut targets = vec![Target::Carrack(carrack.to_owned())];
    targets.extend(reference);
    let mut columns = Vec::new();
    for target in &targets {
        let mut figures = Vec::new();
        if ["creates", "create", "gets", "lists", "deliveries", "custom"].into_iter().any(wanted) {
            figures.extend(load::run(target, &wanted).await?);
        }
        if ["api-idle", "api-pods", "watches"].into_iter().any(wanted) {
            figures.extend(memory::run(target, &wanted).await?);
        }
        columns.push(figures);
    }
    let mut columns = columns.into_iter();
    let own = columns.next().unwrap_or_default();
    let other = columns.next();
    println!("{:<58} {:>16} {:>16} {:>7} {:>12}", "API server", "measured", "reference", "ratio", "bar");
    for (at, figure) in own.iter().enumerate() {
        let beside = other.as_ref().and_then(|figures| figures.get(at));
        let (text, ratio) = match beside {
            Some(one) => (show(one), format!("{:.2}", figure.value / one.value)),
            None => (String::new(), String::new()),
        };
        println!("{:<58} {:>16} {text:>16} {ratio:>7} {:>12}", figure.what, show(figure), figure.bar);
        let notes = [figure.note.as_str(), beside.map_or("", |one| one.note.as_str())];
        if notes.iter().any(|note| !note.is_empty()) {
            println!("{:<58} {:>16} {:>16}", "", notes[0], notes[1]);
        }
    }
    Ok(())
}

fn show(figure: &Figure) -> String {
    let digits = if figure.value < 10.0 { 2 } else { 0 };
    format!("{:.digits$}{}", figure.value, figure.unit)
}

fn milliseconds(value: Duration) -> String {
    format!("{:.2} ms", value.as_secs_f64() * 1e3)
}

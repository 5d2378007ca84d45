//! An API server alone, for trying clients against it: `serve DIR PORT`.

use apiserver::Config;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = std::path::PathBuf::from(args.next().ok_or("usage: serve DIR PORT")?);
    let port: u16 = args.next().ok_or("usage: serve DIR PORT")?.parse()?;
    std::fs::create_dir_all(&dir)?;
    let mut config = Config::new(&dir);
    config.bind.set_port(port);
    // One address family, as the recorded answers have it.
    config.service_cidrs.truncate(1);
    let store = store::embedded::open(&dir.join("store.redb"))?;
    let server = apiserver::start(config, store).await?;
    println!("{}", server.address());
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        drop(tokio::signal::ctrl_c().await);
        stop.cancel();
    });
    server.serve(shutdown).await;
    Ok(())
}

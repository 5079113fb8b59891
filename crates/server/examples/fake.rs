//! Serves the fake engine of the tests, to look at the page: `cargo run --release -p server
//! --example fake -- 8089`.

#[path = "../tests/http/fake.rs"]
#[allow(dead_code)]
mod fake;

use std::time::Duration;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().nth(1).as_deref() == Some("render-templates") {
        return Ok(server::render_templates()?);
    }
    let port: u16 = std::env::args().nth(1).map_or(Ok(8089), |text| text.parse())?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let engine = fake::Fake::start(fake::Options {
        tick: Duration::from_millis(30),
        ..fake::Options::default()
    });
    let end = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    server::serve(
        listener,
        server::ServerSettings::default(),
        fake::info(),
        fake::text(),
        engine,
        end,
    )
    .await?;
    Ok(())
}

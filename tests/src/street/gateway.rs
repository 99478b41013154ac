//! A buyer's HTTP endpoint, open on a street.

use std::net::SocketAddr;

use farthing_client::config;
use farthing_client::gateway::{BindError, Gateway};
use farthing_client::metrics::Metrics;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::street::Buyer;

/// A gateway that serves until it is stopped or dropped.
#[derive(Debug)]
pub struct RunningGateway {
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<std::io::Result<()>>,
}

impl RunningGateway {
    /// Opens `buyer`'s endpoint as its config says; a port of 0 picks a free one.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn open(buyer: &Buyer, settings: config::Gateway) -> Result<Self, BindError> {
        let metrics = Metrics::default();
        let gateway = Gateway::bind(buyer.client().clone(), settings, metrics).await?;
        let address = gateway.address();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(gateway.serve(stop.clone()));
        Ok(Self {
            address,
            stop,
            serving,
        })
    }

    /// Opens it on a free loopback port, without keys.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn free(buyer: &Buyer) -> Result<Self, BindError> {
        let mut settings = buyer.config.gateway.clone();
        settings.listen.set_port(0);
        Self::open(buyer, settings).await
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What an OpenAI client is given as its base URL.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Lets answers under way finish, and closes.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // A listener that failed has nothing left to close.
        (&mut self.serving).await.ok();
    }
}

impl Drop for RunningGateway {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

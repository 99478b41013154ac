//! The door's certificate and its key, as the operator has given them.

use std::path::Path;
use std::sync::Arc;

use farthing_protocol::clock::Timestamp;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{Error, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::HttpConfig;
use crate::http::BindError;

/// A certificate with the key that fits it.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    leaf: CertificateDer<'static>,
    config: Arc<ServerConfig>,
}

impl Certificate {
    /// Reads what is configured, if anything is.
    ///
    /// # Errors
    /// [`BindError::Tls`].
    pub(crate) fn read(settings: &HttpConfig) -> Result<Option<Self>, BindError> {
        let (Some(chain), Some(key)) = (&settings.tls_certificate, &settings.tls_key) else {
            return Ok(None);
        };
        let fault = |key: &'static str, path: &Path, reason: String| BindError::Tls {
            key,
            path: path.to_owned(),
            reason,
        };
        let certificates = CertificateDer::pem_file_iter(chain)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|e| fault("http.tls_certificate", chain, e.to_string()))?;
        let Some(leaf) = certificates.first().cloned() else {
            let reason = "there is no certificate in it".to_owned();
            return Err(fault("http.tls_certificate", chain, reason));
        };
        let secret = PrivateKeyDer::from_pem_file(key)
            .map_err(|e| fault("http.tls_key", key, e.to_string()))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_no_client_auth()
                    .with_single_cert(certificates, secret)
            });
        let mut config = config.map_err(|error| match error {
            Error::InconsistentKeys(_) => {
                let reason = "it is the key of another certificate".to_owned();
                fault("http.tls_key", key, reason)
            }
            other => fault("http.tls_certificate", chain, other.to_string()),
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(Self {
            leaf,
            config: Arc::new(config),
        }))
    }

    /// What accepts connections with it.
    pub(in crate::http) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }

    /// The server's own certificate.
    pub(crate) const fn leaf(&self) -> &CertificateDer<'static> {
        &self.leaf
    }

    /// From when, and until when, it is valid; nothing when it cannot be read.
    pub(crate) fn valid(&self) -> Option<(Timestamp, Timestamp)> {
        let (_, certificate) = X509Certificate::from_der(&self.leaf).ok()?;
        let validity = certificate.validity();
        let at = |seconds: i64| {
            let seconds = u64::try_from(seconds).unwrap_or_default();
            Timestamp(seconds.saturating_mul(1000))
        };
        Some((
            at(validity.not_before.timestamp()),
            at(validity.not_after.timestamp()),
        ))
    }
}

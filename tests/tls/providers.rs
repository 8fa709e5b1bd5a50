//! What does the cryptography.

use buffstreams::{Connection, Listener, Provider, Tls};
use futures::SinkExt;

use super::certificates::Authority;
use super::net::{SOON, config, next, run, within};

/// Nothing is installed for the process, as rustls would like it: each session is given its provider, or it would panic with
/// both of them compiled in.
#[test]
fn each_provider_speaks_with_each_and_none_is_installed_for_the_process() {
    run(async {
        let authority = Authority::new("the authority");
        let own = authority.issue("localhost");
        let providers = [
            None,
            Some(Provider::Ring),
            #[cfg(feature = "tls-aws-lc-rs")]
            Some(Provider::AwsLcRs),
        ];
        let with = |tls: Tls, provider: Option<Provider>| match provider {
            None => tls,
            Some(provider) => tls.provider(provider),
        };
        for here in providers {
            for there in providers {
                let server = with(Tls::new().server(&own.cert, &own.key).unwrap(), there);
                let client = with(Tls::new().roots(authority.pem()).unwrap().server_name("localhost").unwrap(), here);
                let mut listener = Listener::bind("127.0.0.1:0", config().tls(server)).await.unwrap();
                let dialed = Connection::dial(listener.local_addr(), config().tls(client));
                let mut connection = within(SOON, dialed).await.unwrap();
                connection.send(b"over the border"[..].into()).await.unwrap();
                assert_eq!(next(&mut listener).await.unwrap().1, "over the border");
            }
        }
        assert!(rustls::crypto::CryptoProvider::get_default().is_none());
    });
}

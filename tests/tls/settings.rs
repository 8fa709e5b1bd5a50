//! Settings that cannot work: each is an error that says which, when it is given or when it is first used.

use std::fs;
use std::path::{Path, PathBuf};

use buffstreams::{
    Config, ConfigError, Connection, Error, Listener, Sim, Tls, TlsClientFiles, TlsError, TlsFiles, TlsServerFiles,
};
use futures::SinkExt;

use super::certificates::{Authority, Pair};
use super::net::{alone, config, next, run};

/// What listening, or dialing, with these settings comes to.
async fn used(tls: &Tls, listens: bool) -> Result<(), Error> {
    let config = config().tls(tls.clone());
    match listens {
        true => Listener::bind("127.0.0.1:0", config).await.map(drop),
        false => {
            // Somebody has to take the connection.
            let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            Connection::dial(socket.local_addr().unwrap(), config).await.map(drop)
        }
    }
}

fn refused(used: Result<(), Error>) -> ConfigError {
    match used {
        Err(Error::Config(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn is_pem(error: &ConfigError, of: &str) -> bool {
    matches!(error, ConfigError::Pem { what, problem, .. } if *what == of && !problem.is_empty())
}

#[test]
fn what_is_not_there_or_cannot_be_read_is_an_error_that_says_so() {
    let authority = Authority::new("the authority");
    let Pair { cert, key } = authority.issue("localhost");
    let garbage = "-----BEGIN CERTIFICATE-----\nthis is !!! not base64\n-----END CERTIFICATE-----\n";
    let cut = &cert[..cert.len() / 2];
    let cases: [(&str, Result<Tls, ConfigError>, &str); 16] = [
        ("garbage for a certificate", Tls::new().server(garbage, &key), "certificate"),
        ("half a certificate", Tls::new().server(cut, &key), "certificate"),
        ("nothing for a certificate", Tls::new().server("", &key), "certificate"),
        ("bytes that are no text", Tls::new().server([0xff, 0, 0xfe], &key), "certificate"),
        ("a key for a certificate", Tls::new().server(&key, &key), "certificate"),
        ("nothing for a key", Tls::new().server(&cert, ""), "private key"),
        ("garbage for a key", Tls::new().server(&cert, garbage.replace("CERTIFICATE", "PRIVATE KEY")), "private key"),
        ("a certificate for a key", Tls::new().server(&cert, &cert), "private key"),
        ("half a key", Tls::new().server(&cert, &key[..key.len() / 2]), "private key"),
        ("nothing for roots", Tls::new().roots(""), "certificate"),
        ("garbage for roots", Tls::new().roots(garbage), "certificate"),
        ("a key for roots", Tls::new().roots(&key), "certificate"),
        (
            "a root that is none",
            Tls::new().roots("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "authority",
        ),
        ("a key for the authorities", Tls::new().server(&cert, &key).unwrap().client_auth(&key), "certificate"),
        ("nothing for an identity", Tls::new().identity("", &key), "certificate"),
        ("an identity without a key", Tls::new().identity(&cert, ""), "private key"),
    ];
    for (name, given, of) in cases {
        let error = given.expect_err(name);
        assert!(is_pem(&error, of), "{name}: {error:?}");
    }
    assert_eq!(Tls::new().client_auth(authority.pem()).unwrap_err(), ConfigError::NoTlsServer);
    for name in ["", "a name", "host:5031", "-", "a..b", "300.1.1.1x/"] {
        let error = Tls::new().server_name(name).unwrap_err();
        assert!(matches!(&error, ConfigError::TlsServerName { name: told, .. } if told == name), "{error:?}");
    }
}

#[test]
fn what_cannot_be_used_is_an_error_of_whoever_binds_or_dials() {
    run(async {
        let authority = Authority::new("the authority");
        let (Pair { cert, key }, other) = (authority.issue("localhost"), authority.issue("localhost"));
        let server = Tls::new().server(&cert, &key).unwrap();
        let client = Tls::new().roots(authority.pem()).unwrap();
        let cases = [
            ("no server", client.clone(), true, ConfigError::NoTlsServer),
            ("no client", server.clone(), false, ConfigError::NoTlsClient),
            ("neither, to listen", Tls::new(), true, ConfigError::NoTlsServer),
            ("neither, to dial", Tls::new(), false, ConfigError::NoTlsClient),
            ("nothing of rustls, to listen", Tls::from_rustls(None, None), true, ConfigError::NoTlsServer),
            ("nothing of rustls, to dial", Tls::from_rustls(None, None), false, ConfigError::NoTlsClient),
            ("another key, to listen", Tls::new().server(&cert, &other.key).unwrap(), true, ConfigError::TlsKey),
            ("another key, to dial", client.clone().identity(&cert, &other.key).unwrap(), false, ConfigError::TlsKey),
        ];
        for (name, tls, listens, expected) in cases {
            assert_eq!(refused(used(&tls, listens).await), expected, "{name}");
        }
        let error = refused(used(&server.clone().max_handshakes(0), true).await);
        assert!(matches!(error, ConfigError::Zero { name: "max_handshakes", .. }), "{error:?}");
        // What is no certificate, but well-formed PEM, is found when it is used.
        let no_cert = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let error = refused(used(&Tls::new().server(no_cert, &key).unwrap(), true).await);
        assert!(matches!(error, ConfigError::Tls { .. }), "{error:?}");
        let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let error = refused(used(&Tls::new().server(&cert, no_key).unwrap(), true).await);
        assert!(matches!(error, ConfigError::Tls { .. }), "{error:?}");
    });
}

/// A name that has an address, on a simulator, and is none that a certificate could have.
#[test]
fn a_host_that_cannot_be_the_name_of_a_server_is_an_error_of_the_dial() {
    Sim::new().run(|sim| async move {
        let authority = Authority::new("the authority");
        let config = Config::new().runtime(sim.clone());
        let listener = Listener::bind("10.0.0.1:5031", config.clone()).await.unwrap();
        sim.name("a..b", listener.local_addr().ip().unwrap().ip());
        let config = config.tls(Tls::new().roots(authority.pem()).unwrap());
        let error = refused(Connection::dial("a..b:5031", config).await.map(drop));
        assert!(matches!(&error, ConfigError::TlsServerName { name, .. } if name == "a..b"), "{error:?}");
    });
}

#[test]
fn what_cannot_take_the_place_of_the_old_leaves_it_in_force() {
    run(async {
        let authority = Authority::new("the authority");
        let (Pair { cert, key }, other) = (authority.issue("localhost"), authority.issue("localhost"));
        let server = Tls::new().server(&cert, &key).unwrap();
        let client = Tls::new().roots(authority.pem()).unwrap().server_name("localhost").unwrap();
        let mut listener = Listener::bind("127.0.0.1:0", config().tls(server.clone())).await.unwrap();
        let addr = listener.local_addr().ip().unwrap();
        for (tls, other, expected) in [
            (&server, Tls::new().server(&cert, &other.key).unwrap(), ConfigError::TlsKey),
            (&server, Tls::new(), ConfigError::NoTlsServer),
            (&server, client.clone(), ConfigError::NoTlsServer),
            (&client, server.clone(), ConfigError::NoTlsClient),
            (&client, client.clone().identity(&cert, &other.key).unwrap(), ConfigError::TlsKey),
        ] {
            assert_eq!(tls.replace(&other).unwrap_err(), expected);
            let mut connection = Connection::dial(addr, config().tls(client.clone())).await.unwrap();
            connection.send(b"as before"[..].into()).await.unwrap();
            assert_eq!(next(&mut listener).await.unwrap().1, "as before");
        }
        // And with itself, and with what has both sides where one is needed.
        server.replace(&server).unwrap();
        client.replace(&client).unwrap();
        server.replace(&Tls::new().roots(authority.pem()).unwrap().server(&other.cert, &other.key).unwrap()).unwrap();
        Connection::dial(addr, config().tls(client)).await.unwrap().close().await.unwrap();
    });
}

/// Files in a folder that is gone with this.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("buffstreams-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, contents).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Both sides, each of which asks the other for a certificate.
fn both(folder: &Folder) -> TlsFiles {
    let authority = Authority::new("the authority");
    let Pair { cert, key } = authority.issue("localhost");
    let (cert, key) = (folder.file("own.pem", cert), folder.file("own.key", key));
    let roots = folder.file("ca.pem", authority.pem());
    let mut files = TlsFiles::default();
    let mut server = TlsServerFiles::default();
    (server.cert, server.key, server.client_auth) = (cert.clone(), key.clone(), Some(roots.clone()));
    let mut client = TlsClientFiles::default();
    (client.cert, client.key, client.roots) = (Some(cert), Some(key), Some(roots));
    client.server_name = Some("localhost".to_owned());
    (files.server, files.client, files.max_handshakes) = (Some(server), Some(client), 7);
    files
}

#[test]
fn what_is_in_files_is_as_what_is_given_in_code() {
    run(async {
        let folder = Folder::new("tls-files");
        let files = both(&folder);
        let tls = Tls::from_files(files.clone()).unwrap();
        assert_eq!(tls.files(), Some(files.clone()));
        assert_eq!(tls, Tls::from_files(files.clone()).unwrap());
        assert_eq!(tls.clone().max_handshakes(8).files(), None, "it was changed since");
        let mut listener = Listener::bind("127.0.0.1:0", config().tls(tls.clone())).await.unwrap();
        let mut connection = Connection::dial(listener.local_addr(), config().tls(tls)).await.unwrap();
        connection.send("through files".into()).await.unwrap();
        assert_eq!(next(&mut listener).await.unwrap().1, "through files");
    });
}

#[test]
fn a_file_that_cannot_be_read_and_half_a_pair_are_named() {
    let folder = Folder::new("tls-no-files");
    let files = both(&folder);
    let with = |change: &dyn Fn(&mut TlsServerFiles, &mut TlsClientFiles)| {
        let mut files = files.clone();
        change(files.server.as_mut().unwrap(), files.client.as_mut().unwrap());
        Tls::from_files(files).unwrap_err()
    };
    let missing = || PathBuf::from("/there/is/none.pem");
    type Change = fn(&mut TlsServerFiles, &mut TlsClientFiles, PathBuf);
    let paths: [Change; 6] = [
        |server, _, path| server.cert = path,
        |server, _, path| server.key = path,
        |server, _, path| server.client_auth = Some(path),
        |_, client, path| client.roots = Some(path),
        |_, client, path| client.cert = Some(path),
        |_, client, path| client.key = Some(path),
    ];
    for change in paths {
        let error = with(&|server, client| change(server, client, missing()));
        let ConfigError::TlsFile { path, kind, .. } = &error else { panic!("{error}") };
        assert_eq!((Path::new(path), *kind), (&*missing(), std::io::ErrorKind::NotFound));
    }
    let no_key = with(&|_, client| client.key = None);
    assert!(matches!(no_key, ConfigError::TlsPair { given: "cert", missing: "key", .. }), "{no_key:?}");
    let no_cert = with(&|_, client| client.cert = None);
    assert!(matches!(no_cert, ConfigError::TlsPair { given: "key", missing: "cert", .. }), "{no_cert:?}");
    let garbage = folder.file("garbage.pem", "no certificate");
    assert!(is_pem(&with(&|server, _| server.cert = garbage.clone()), "certificate"));
}

#[cfg(feature = "serde")]
#[test]
fn a_file_of_settings_names_the_files_of_tls() {
    let folder = Folder::new("tls-in-toml");
    let files = both(&folder);
    let config = Config::new().tls(Tls::from_files(files.clone()).unwrap());
    let text = toml::to_string(&config).unwrap();
    assert!(text.contains("[tls.server]") && text.contains("own.key"), "{text}");
    assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
    let key = fs::read_to_string(files.server.unwrap().key).unwrap();
    assert!(!text.contains(key.lines().nth(1).unwrap()), "no key is written");
    for (text, named) in [
        ("[tls.server]\ncert = '/there/is/none.pem'\nkey = 'k'", "cannot read /there/is/none.pem: entity not found"),
        ("[tls.server]\ncert = 'c'", "missing field `key`"),
        ("[tls.client]\nca = 'c'", "unknown field `ca`"),
        ("tls = 1", "expected struct TlsFiles"),
    ] {
        let error = toml::from_str::<Config>(text).unwrap_err().to_string();
        assert!(error.contains(named), "{text}: {error}");
    }
}

/// In a process of its own, whose environment says where the authorities of the system are.
#[cfg(target_os = "linux")]
#[test]
fn what_the_system_trusts_is_trusted_and_nobody_else() {
    const NAME: &str = "settings::what_the_system_trusts_is_trusted_and_nobody_else";
    alone(NAME, "export SSL_CERT_FILE=$(mktemp)", || {
        run(async {
            let [trusted, other] = ["trusted", "other"].map(Authority::new);
            let file = PathBuf::from(std::env::var_os("SSL_CERT_FILE").unwrap());
            fs::write(&file, trusted.pem()).unwrap();
            let client = Tls::new().client().server_name("localhost").unwrap();
            for (authority, is_trusted) in [(&trusted, true), (&other, false)] {
                let Pair { cert, key } = authority.issue("localhost");
                let server = config().tls(Tls::new().server(cert, key).unwrap());
                let listener = Listener::bind("127.0.0.1:0", server).await.unwrap();
                let dialed = Connection::dial(listener.local_addr(), config().tls(client.clone())).await;
                let is_refused = matches!(&dialed, Err(Error::Tls { source: TlsError::UnknownIssuer, .. }));
                assert_eq!((dialed.is_ok(), is_refused), (is_trusted, !is_trusted), "{dialed:?}");
            }
            fs::remove_file(file).unwrap();
        });
    });
}

//! Small packages into trees: what fits, what does not, and what is said then.

use super::*;
use crate::control::Control;
use crate::recipe::FileRule;
use crate::tree::Node;

/// A package with these files.
fn deb(name: &str, files: &[(&str, &str)]) -> Deb {
    let mut data = Tree::new();
    for (path, contents) in files {
        put(&mut data, path, Entry::file(0o644, (*contents).to_owned())).unwrap();
    }
    let control = format!("Package: {name}\nVersion: 1\nArchitecture: all\nDescription: a test\n");
    Deb {
        control: Control::parse(&control).unwrap(),
        conffiles: vec![format!("/etc/{name}.conf")],
        info: std::collections::BTreeMap::new(),
        data,
    }
}

/// What every image needs.
fn essential() -> Deb {
    deb(
        "base-passwd",
        &[
            (
                "usr/share/base-passwd/passwd.master",
                "root:*:0:0:root:/root:/bin/bash\n",
            ),
            (
                "usr/share/base-passwd/group.master",
                "root:*:0:\nshadow:*:42:\ndip:*:30:\n",
            ),
            ("usr/share/ca-certificates/a.crt", "one\n"),
            ("usr/share/ca-certificates/b.crt", "two"),
            ("etc/base-passwd.conf", "hello\n"),
            ("lib/merged", "x"),
        ],
    )
}

/// The own recipe without what only the real packages have.
fn recipe() -> Recipe {
    let mut recipe = Recipe::own().unwrap();
    recipe.packages.leave_out.clear();
    recipe.directories.clear();
    recipe.files.clear();
    recipe.links.clear();
    recipe.overlay.clear();
    recipe.set_id.cleared.clear();
    recipe.units.enable.clear();
    recipe.units.mask.clear();
    recipe.users.retain(|name, _| name == "haproxy");
    recipe
}

#[test]
fn users_certificates_and_dpkgs_lists_are_made_of_the_packages() {
    let tree = base(&[essential()], &recipe()).unwrap();
    let text = |path: &str| str::from_utf8(tree.contents(path).unwrap()).unwrap().to_owned();
    assert_eq!(
        text("etc/passwd"),
        "root:x:0:0:root:/root:/bin/bash\nhaproxy:x:102:102::/var/lib/haproxy:/usr/sbin/nologin\n"
    );
    assert_eq!(text("etc/shadow").lines().next().unwrap(), "root:*:20089:0:99999:7:::");
    let shadow = tree.get("etc/shadow").unwrap();
    assert_eq!((shadow.mode, shadow.gid), (0o640, 42));
    assert_eq!(text("etc/ssl/certs/ca-certificates.crt"), "one\ntwo\n");
    assert_eq!(
        text("var/lib/dpkg/status"),
        "Package: base-passwd\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\
         Conffiles:\n /etc/base-passwd.conf b1946ac92492d2347c6235b4d2611184\nDescription: a test\n\n"
    );
    assert!(tree.get("usr/lib/merged").is_some());
    assert!(tree.get("lib").is_none());
}

#[test]
fn the_lists_name_what_is_in_the_image() {
    let tree = base(&[essential()], &recipe()).unwrap();
    let mut tree = finish(tree, &recipe(), &Additions::default()).unwrap();
    let list = "var/lib/dpkg/info/base-passwd.list";
    let before = str::from_utf8(tree.contents(list).unwrap()).unwrap().to_owned();
    assert!(before.contains("/lib/merged\n"), "{before}");
    assert!(!before.contains("ca-certificates/a.crt"), "{before}");
    tree.remove("usr/lib/merged");
    dpkg::forget_missing(&mut tree);
    assert_eq!(
        str::from_utf8(tree.contents(list).unwrap()).unwrap(),
        before.replace("/lib/merged\n", "")
    );
}

#[test]
fn two_packages_with_one_file_are_told() {
    let same = deb("other", &[("usr/lib/merged", "x")]);
    base(&[essential(), same], &recipe()).unwrap();
    let different = deb("other", &[("usr/lib/merged", "y")]);
    let error = base(&[essential(), different], &recipe()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "usr/lib/merged is in the packages base-passwd and other; leave one of them out, or prune the file"
    );
}

#[test]
fn a_service_whose_user_is_not_in_the_recipe_is_told() {
    let service = deb(
        "other",
        &[("usr/lib/sysusers.d/other.conf", "# comment\nu! other - - /\n")],
    );
    let error = base(&[essential(), service], &recipe()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "usr/lib/sysusers.d/other.conf wants the user \"other\"; change it in recipe.toml"
    );
}

#[test]
fn what_must_not_be_in_an_image_is_told_all_at_once() {
    let mut tree = base(&[essential()], &recipe()).unwrap();
    let key = "-----BEGIN OPENSSH PRIVATE KEY-----\n";
    for (path, entry) in [
        ("usr/bin/root", Entry::file(0o4755, "x")),
        ("usr/bin/script", Entry::file(0o755, "#!/usr/bin/python3 -u\n")),
        ("etc/ssh/ssh_host_rsa_key", Entry::file(0o600, key)),
        ("usr/bin/link", Entry::symlink("nowhere")),
        ("etc/fine", Entry::symlink("/run/later")),
    ] {
        put(&mut tree, path, entry).unwrap();
    }
    let error = finish(tree, &recipe(), &Additions::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the image would not be sound:\n  \
         etc/ssh/ssh_host_rsa_key is a private key\n  \
         usr/bin/link leads to nowhere, which is not there\n  \
         usr/bin/root runs with another's rights (mode 4755); see [set_id]\n  \
         usr/bin/script needs /usr/bin/python3, which is not there"
    );
}

#[test]
fn overlay_programs_and_releases_get_their_places() {
    let mut recipe = recipe();
    recipe.overlay.insert("etc/secret".to_owned(), Bytes::from_static(b"x"));
    let rule = FileRule {
        mode: Some(0o600),
        owner: "haproxy".to_owned(),
        group: "root".to_owned(),
        from: None,
        empty: false,
    };
    recipe.files.insert("etc/secret".to_owned(), rule);
    let additions = Additions {
        programs: vec![("agent".to_owned(), Bytes::from_static(b"#!/usr/bin/agent\n"))],
        files: vec![("usr/share/page".to_owned(), 0o644, Bytes::from_static(b"page"))],
        version: "1.2.3".to_owned(),
    };
    let tree = finish(base(&[essential()], &recipe).unwrap(), &recipe, &additions).unwrap();
    let secret = tree.get("etc/secret").unwrap();
    assert_eq!((secret.mode, secret.uid), (0o600, 102));
    assert_eq!(tree.resolve("usr/bin/agent").unwrap(), "usr/lib/sysvm/bin/agent");
    assert_eq!(tree.contents("usr/share/page").unwrap(), "page");
    assert_eq!(tree.contents("etc/sysvm-release").unwrap(), "1.2.3\n");
    assert_eq!(
        tree.contents("etc/cloudstack-release").unwrap(),
        "Cloudstack Release 4.22.0 Wed Jan  1 00:00:00 UTC 2025\n"
    );
    assert!(matches!(
        &tree.get("usr/lib/sysvm/bin/agent").unwrap().node,
        Node::File(_)
    ));
}

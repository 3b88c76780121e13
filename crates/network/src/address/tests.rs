use super::{AddressClass::*, *};

#[test]
fn addresses_are_what_they_are_and_what_they_embed() {
    for (ip, class) in [
        ("93.184.216.34", Public),
        ("127.0.0.1", Private),
        ("10.0.0.1", Private),
        ("172.16.0.1", Private),
        ("172.32.0.1", Public),
        ("192.168.0.1", Private),
        ("100.64.0.1", Private),
        ("100.128.0.1", Public),
        ("192.88.99.1", Private),
        ("198.18.0.1", Private),
        ("198.19.255.255", Private),
        ("198.20.0.1", Public),
        ("203.0.113.7", Private),
        ("169.254.1.1", Forbidden),
        ("0.0.0.0", Forbidden),
        ("0.255.255.255", Forbidden),
        ("224.0.0.1", Forbidden),
        ("239.255.255.255", Forbidden),
        ("240.0.0.1", Forbidden),
        ("255.255.255.255", Forbidden),
        ("::1", Private),
        ("::2", Forbidden), // 0.0.0.2, IPv4-compatible
        ("::", Forbidden),
        ("::7f00:1", Private),
        ("fe80::1", Forbidden),
        ("febf::1", Forbidden),
        ("fec0::1", Private),
        ("fc00::1", Private),
        ("ff02::1", Forbidden),
        ("::ffff:127.0.0.1", Private),
        ("::ffff:93.184.216.34", Public),
        ("::ffff:0:7f00:1", Private),
        ("64:ff9b::7f00:1", Private),
        ("64:ff9b:1::a00:1", Private),
        ("2002:7f00:1::", Private),
        ("2002:5db8:d822::1", Public),
        ("2002:e000:1::", Forbidden),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", Private),
        ("2001:0:4136:e378:0:0:80ff:fffe", Private), // Teredo client 127.0.0.1
        ("2001:db8::1", Private),
        ("2001:2::1", Private),
        ("3fff::1", Private),
        ("100::1", Private),
        ("2606:2800:220:1::1", Public),
        ("4000::1", Private),
    ] {
        assert_eq!(classify(ip.parse().unwrap()), class, "{ip}");
    }
}

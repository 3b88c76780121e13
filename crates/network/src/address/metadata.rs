//! Metadata and credential endpoints of clouds. They give a machine's credentials to any client
//! that connects, so no configuration permits them, not even `seks dev`.
//!
//! 169.254.0.0/16 and fe80::/10 are also refused as link-local. Their entries are listed too, so
//! that this table is complete and can be compared with its sources.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The endpoint of one provider.
struct Endpoint {
    address: IpAddr,
    /// The provider, and the page that documents the address.
    #[cfg_attr(not(test), expect(dead_code, reason = "the source of the address, for readers and the test"))]
    source: &'static str,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, source: &'static str) -> Endpoint {
    Endpoint { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), source }
}

const fn v6(s: [u16; 8], source: &'static str) -> Endpoint {
    let [a, b, c, d, e, f, g, h] = s;
    Endpoint { address: IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), source }
}

/// Every address, with its source.
const ENDPOINTS: &[Endpoint] = &[
    // Shared by AWS, Azure, GCP, OCI, DigitalOcean, Hetzner, OpenStack, IBM, Vultr, Huawei,
    // Tencent.
    v4(169, 254, 169, 254, "AWS: docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html"),
    v6(
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254],
        "AWS: docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html",
    ),
    v4(169, 254, 170, 2, "AWS ECS: docs.aws.amazon.com/AmazonECS/latest/developerguide/task-iam-roles.html"),
    v4(169, 254, 170, 23, "AWS EKS Pod Identity: docs.aws.amazon.com/eks/latest/userguide/pod-id-agent-setup.html"),
    v6(
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23],
        "AWS EKS Pod Identity: docs.aws.amazon.com/eks/latest/userguide/pod-id-agent-setup.html",
    ),
    v4(
        168,
        63,
        129,
        16,
        "Azure WireServer: learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16",
    ),
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], "GCP: cloud.google.com/compute/docs/metadata/querying-metadata"),
    v4(169, 254, 169, 252, "GKE metadata server: cloud.google.com/kubernetes-engine/docs/concepts/workload-identity"),
    v4(
        192,
        0,
        0,
        192,
        "OCI Classic: docs.oracle.com/en/cloud/iaas/compute-iaas-cloud/stcsg/retrieving-instance-metadata.html",
    ),
    v6(
        [0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe],
        "OCI: docs.oracle.com/en-us/iaas/Content/Compute/Tasks/gettingmetadata.htm",
    ),
    v4(100, 100, 100, 200, "Alibaba: www.alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata"),
    v4(169, 254, 42, 42, "Scaleway: www.scaleway.com/en/developers/api/instance/user-data"),
    v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42], "Scaleway: www.scaleway.com/en/developers/api/instance/user-data"),
    v4(169, 254, 0, 23, "Tencent, metadata.tencentyun.com: www.tencentcloud.com/document/product/213/4934"),
    v6(
        [0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe],
        "OpenStack: docs.openstack.org/nova/latest/admin/metadata-service.html",
    ),
    v6(
        [0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1],
        "Akamai: techdocs.akamai.com/cloud-computing/docs/overview-of-the-metadata-service",
    ),
    v4(100, 96, 0, 96, "Volcano Engine: www.volcengine.com/docs/6396/98717"),
];

/// Names of these endpoints in the providers' name servers. Their addresses are refused as well.
/// With the names, the refusal comes when a service is stored.
const NAMES: &[&str] = &[
    "metadata",
    "metadata.google.internal", // GCP
    "metadata.goog",
    "metadata.gcp.internal",
    "instance-data", // AWS
    "instance-data.ec2.internal",
    "metadata.tencentyun.com",      // Tencent
    "metadata.azure.internal",      // Azure
    "api.metadata.cloud.ibm.com",   // IBM
    "metadata.platformequinix.com", // Equinix Metal
    "rancher-metadata",             // Rancher 1
    "rancher-metadata.rancher.internal",
];

/// Whether an address, in its canonical form, is in this list.
pub(super) fn is_metadata(ip: IpAddr) -> bool {
    ENDPOINTS.iter().any(|endpoint| endpoint.address == ip)
}

/// Whether a lower-case host name is in this list.
#[must_use]
pub fn is_metadata_name(host: &str) -> bool {
    NAMES.contains(&host.trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{AddressClass, classify};

    #[test]
    fn every_metadata_endpoint_names_its_source_and_is_never_dialled_in_any_form() {
        for Endpoint { address, source } in ENDPOINTS {
            assert!(
                source.split_once(": ").is_some_and(|(_, page)| page.contains('.') && page.contains('/')),
                "{source}"
            );
            assert_eq!(classify(*address), AddressClass::Forbidden, "{source}");
            let IpAddr::V4(v4) = address else { continue };
            let [a, b, c, d] = v4.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            for form in [
                v4.to_ipv6_mapped(),
                Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0x2001, 0, high, low, 0, 0, 0, 1),
                Ipv6Addr::new(0x2001, 0, 0x4136, 0xe378, 0, 0, !high, !low),
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0x5efe, high, low),
                Ipv6Addr::new(0xfd00, 0, 0, 0, 0x200, 0x5efe, high, low),
            ] {
                assert_eq!(classify(form.into()), AddressClass::Forbidden, "{form}: {source}");
            }
        }
    }

    #[test]
    fn names_are_matched_with_and_without_the_root() {
        assert!(is_metadata_name("metadata.google.internal") && is_metadata_name("metadata.google.internal."));
        assert!(!is_metadata_name("metadata.example.com"));
    }
}

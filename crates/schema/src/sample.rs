//! A small table for the tests of this crate.

use crate::{TypeId, Types};

const TABLE: &str = "\
T io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta
\tannotations\tmap:string\tomitempty\tproto=12
\tcreationTimestamp\tio.k8s.apimachinery.pkg.apis.meta.v1.Time\tomitzero\tproto=8
\tfinalizers\t[]string\tomitempty\tlist=set\tmerge\tproto=14
\tgeneration\tinteger:int64\tomitempty\tproto=7
\tlabels\tmap:string\tomitempty\tproto=11
\tmanagedFields\t[]io.k8s.apimachinery.pkg.apis.meta.v1.ManagedFieldsEntry\tomitempty\tlist=atomic\tproto=17
\tname\tstring\tomitempty\tproto=1
\tnamespace\tstring\tomitempty\tproto=3
\tresourceVersion\tstring\tomitempty\tproto=6
\tuid\tstring\tomitempty\tproto=5
T io.k8s.apimachinery.pkg.apis.meta.v1.ManagedFieldsEntry
\tapiVersion\tstring\tomitempty\tproto=3
\tfieldsType\tstring\tomitempty\tproto=6
\tfieldsV1\tio.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1\tomitempty\tpointer\tproto=7
\tmanager\tstring\tomitempty\tproto=1
\toperation\tstring\tomitempty\tproto=2
\tsubresource\tstring\tomitempty\tproto=8
\ttime\tio.k8s.apimachinery.pkg.apis.meta.v1.Time\tomitempty\tpointer\tproto=4
T test.v1.Box\tkind=/v1/Box
\tapiVersion\tstring\tomitempty
\tkind\tstring\tomitempty
\tmetadata\tio.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta\tomitempty\tdefault={}\tproto=1
\tspec\ttest.v1.BoxSpec\tomitempty\tdefault={}\tproto=2
\tstatus\ttest.v1.BoxStatus\tomitempty\tdefault={}\tproto=3
T test.v1.BoxSpec
\targs\t[]string\tomitempty\tlist=atomic\tproto=1
\tcontainers\t[]test.v1.Container\tlist=map\tkeys=name\tmerge\tmergekey=name\tproto=2
\tdata\tmap:string:byte\tomitempty\tproto=3
\tlimits\tmap:io.k8s.apimachinery.pkg.api.resource.Quantity\tomitempty\tproto=4
\tpaused\tboolean\tomitempty\tproto=5
\tport\tio.k8s.apimachinery.pkg.util.intstr.IntOrString\tomitempty\tproto=6
\traw\tio.k8s.apimachinery.pkg.runtime.RawExtension\tomitempty\tpointer\tproto=7
\treplicas\tinteger:int32\tomitempty\tpointer\tproto=8
\tselector\ttest.v1.Selector\tomitempty\tpointer\tproto=9
\tstrategy\ttest.v1.Strategy\tomitempty\tretainkeys\tproto=10
\tweight\tnumber:double\tomitempty\tproto=11
T test.v1.Strategy
\trolling\tmap:string\tomitempty\tproto=2
\ttype\tstring\tomitempty\tproto=1
T test.v1.Selector\tatomic
\tmatchLabels\tmap:string\tomitempty\tproto=1
T test.v1.Container
\tcommand\t[]string\tomitempty\tlist=atomic\tproto=4
\timage\tstring\tomitempty\tproto=2
\tname\tstring\trequired\tproto=1
\tports\t[]test.v1.Port\tomitempty\tlist=map\tkeys=containerPort,protocol\tmerge\tmergekey=containerPort\tproto=3
T test.v1.Port
\tcontainerPort\tinteger:int32\trequired\tproto=1
\thostPort\tinteger:int32\tomitempty\tproto=2
\tname\tstring\tomitempty\tproto=4
\tprotocol\tstring\tomitempty\tdefault=\"TCP\"\tproto=3
T test.v1.BoxStatus
\tconditions\t[]test.v1.Condition\tomitempty\tlist=map\tkeys=type\tmerge\tmergekey=type\tproto=1
\tready\tinteger:int32\tproto=2
T test.v1.Condition
\tlastTransitionTime\tio.k8s.apimachinery.pkg.apis.meta.v1.Time\tomitempty\tproto=3
\tstatus\tstring\trequired\tproto=2
\ttype\tstring\trequired\tproto=1
";

pub fn table() -> (Types, TypeId) {
    let types = Types::parse(TABLE).expect("the sample table");
    let id = types.by_gvk("", "v1", "Box").expect("Box");
    (types, id)
}

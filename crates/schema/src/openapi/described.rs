//! What the fields of every object's metadata are for. Other types say what they are by their names.

/// The description of a field of a type.
pub(super) fn field(of: &str, name: &str) -> Option<&'static str> {
    if of != "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta" {
        return None;
    }
    Some(match name {
        "annotations" => "Annotations are for tools and people: any text by name. Nothing selects by them.",
        "creationTimestamp" => {
            "CreationTimestamp is a timestamp that the server sets when the object is made."
        }
        "deletionGracePeriodSeconds" => "How long the object has to end by itself once it is being deleted.",
        "deletionTimestamp" => {
            "From when on the object is gone, or waits for its finalizers. The server sets it when deletion is asked for."
        }
        "finalizers" => {
            "Who has to do something before the object may go. Each takes its own entry out when it is done."
        }
        "generateName" => {
            "What the name begins with; the server adds five characters. Used only without a name."
        }
        "generation" => "A number that grows whenever what is wanted of the object changes.",
        "labels" => "Labels tell objects apart; selectors choose by them.",
        "managedFields" => "Which fields each writer owns, kept by the server.",
        "name" => "The name is unique among the objects of a kind in their namespace and cannot be changed.",
        "namespace" => "The namespace that the object is in; empty for objects of the whole cluster.",
        "ownerReferences" => "The objects that this one belongs to. It goes when the last of them has gone.",
        "resourceVersion" => {
            "The version of the object as the server stores it, to be compared for sameness alone. A write that names it \
             fails if the object has changed since."
        }
        "selfLink" => "Not used any more.",
        "uid" => "No other object has or had the same. The server sets it.",
        _ => return None,
    })
}

"""The controller of FineTuneJobs: it runs each as a series of attempts (Kubernetes Jobs), and maintains its status.

Permissions that it needs; the chart grants exactly these:

    API group             resource                 verbs                               where
    finetune.dev          finetunejobs             get, list, watch                    watched namespaces
    finetune.dev          finetunejobs/status      patch                               watched namespaces
    batch                 jobs                     get, list, watch, create, delete    watched namespaces
    (core)                pods                     list, watch                         watched namespaces
    (core)                persistentvolumeclaims   get, create                         watched namespaces
    (core)                configmaps               get, create, delete                 watched namespaces
    events.k8s.io         events                   create                              watched namespaces
    coordination.k8s.io   leases                   get, create, update                 its own namespace

It reads no Secrets, Namespaces or CustomResourceDefinitions (discovery, which any authenticated client may read, shows
whether FineTuneJobs are served), and sets no finalizers. It connects to the port `metrics` (9090) of trainer pods.
"""

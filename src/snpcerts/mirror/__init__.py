# SPDX-License-Identifier: Apache-2.0
"""A mirror of AMD's key server for a fleet of hosts.

It requests each certificate from AMD's server once, at the pace that the server allows. It stores
in a database the certificates that verify, and serves them to hosts, guests and verifiers at the
paths that AMD's server uses. It needs the packages of the extra ``mirror``.

``database`` opens the database, ``migrations`` creates the tables, and ``tables`` names them for
queries. ``stored`` reads and writes certificates, ``direct_reader`` reads them from SQLite for
requests, and ``admission`` decides what may be stored. ``wanted`` holds the queue of requests to
AMD's server, and their pace, both of which all instances share. ``fetcher`` works through the
queue, ``waiting`` wakes callers that wait for a certificate, and ``upkeep`` queues renewals and
removes old rows.

HTTP: ``serving`` runs one instance. ``connection`` limits the size of a request and the time for it
and its answer, and reads client certificates. ``service`` answers the URLs of AMD's form, which
``target`` parses, and keeps recent answers in ``body_cache``; ``api`` answers all other URLs.
``mirror_client`` is a client for that API, and ``mirror_metrics`` has the metrics.

Each host's agent sends an ``announcement``. ``fleet_records`` stores it, and ``fleet_view``
summarises all hosts. ``fleet_page`` and ``host_page`` write the pages of the fleet and of one host;
``page`` gives both the same frame, ``charts`` draws their charts, and ``markup`` escapes their
text. ``archive`` carries certificates to networks without access to AMD. Imports ``kds``,
``verify``, ``endorsement`` and ``abi``.
"""

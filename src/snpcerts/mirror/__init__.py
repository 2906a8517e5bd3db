# SPDX-License-Identifier: Apache-2.0
"""A mirror of AMD's key server for a fleet of hosts.

It requests each certificate from AMD once, at AMD's pace. It stores certificates that verify in a
database, and serves them to hosts, guests and verifiers under AMD's own URLs. It needs the packages
of the extra ``mirror``.

The database: ``database`` opens it, ``migrations`` creates its tables, and ``tables`` names them
for queries. ``stored`` has the certificates; ``prompt_reader`` reads them from SQLite for requests;
``admission`` decides what may be stored. ``wanted`` is the queue and the pace of all instances.
``fetcher`` works through it, ``waiting`` wakes callers that wait for a certificate, and ``upkeep``
queues renewals and removes old rows.

HTTP: ``serving`` runs one instance. ``connection`` limits the time of a request and its answer and
the size of a request, and reads client certificates. ``service`` answers AMD's URLs, which
``target`` parses, with ``body_cache`` for recent answers; ``api`` answers all other URLs.
``mirror_client`` is the client of that API; ``mirror_metrics`` has the metrics.

The fleet: agents send an ``announcement``; ``fleet_records`` stores it, and ``fleet_view``
summarises all hosts. ``fleet_page`` and ``host_page`` show it, in the frame of ``page``, with
``charts``, as ``markup``. ``archive`` carries certificates to networks without access to AMD.
Imports ``kds``, ``verify``, ``endorsement`` and ``abi``.
"""

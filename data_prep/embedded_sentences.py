"""Sentences of the embedded corpus in three languages, with slots for values; the wording is ours.

Wording keeps clear of what CLDR does not give: articles and cases of names, and French elision before them.
"""

from __future__ import annotations

# slot -> (family, the variants that fit into running text; empty: all). A digit after the name makes a second one.
SLOTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "date": ("date", ("full", "long")),
    "day": ("date", ("medium", "short")),
    "time": ("time", ("short",)),
    "moment": ("datetime", ("medium", "short")),
    "zoned_time": ("zoned_time", ()),
    "interval": ("interval", ()),
    "hours": ("hours", ()),
    "month": ("month", ()),
    "quarter": ("quarter", ()),
    "number": ("number", ()),
    "percent": ("percent", ()),
    "compact": ("compact", ("long",)),
    "amount": ("amount", ()),
    "past": ("past", ()),
    "length": ("length", ()),
    "weight": ("weight", ()),
    "duration": ("duration", ()),
    "temperature": ("temperature", ()),
    "mixture": ("mixture", ()),
    "territory": ("territory", ()),
    "language": ("language", ()),
    "currency": ("currency", ()),
    "list": ("list", ("standard",)),
    "choice": ("list", ("or",)),
}

SENTENCES: tuple[dict[str, str], ...] = (
    {
        "de": "Der Zug fährt am {date} um {time} ab.",
        "en": "The train leaves on {date} at {time}.",
        "fr": "Le train part le {date} à {time}.",
    },
    {
        "de": "Die Rechnung über {amount} ist am {day} fällig.",
        "en": "The invoice for {amount} is due on {day}.",
        "fr": "La facture de {amount} est à payer le {day}.",
    },
    {
        "de": "Am {date} wurden {amount} überwiesen.",
        "en": "A transfer of {amount} was made on {date}.",
        "fr": "Un virement de {amount} a été fait le {date}.",
    },
    {
        "de": "Das Paket wiegt {weight} und kostet {amount}.",
        "en": "The parcel weighs {weight} and costs {amount}.",
        "fr": "Le colis pèse {weight} et coûte {amount}.",
    },
    {
        "de": "Die letzte Sicherung war {past}, die nächste ist am {day} um {time}.",
        "en": "The last backup was {past}; the next one is on {day} at {time}.",
        "fr": "La dernière sauvegarde date : {past}. La prochaine aura lieu le {day} à {time}.",
    },
    {
        "de": "Öffnungszeiten: {hours}, gültig vom {day} bis {day2}.",
        "en": "Opening hours: {hours}, valid from {day} to {day2}.",
        "fr": "Horaires : {hours}, du {day} au {day2}.",
    },
    {
        "de": "Ziel: {territory}. Abflug: {moment}. Preis: {amount}.",
        "en": "Destination: {territory}. Departure: {moment}. Price: {amount}.",
        "fr": "Destination : {territory}. Départ : {moment}. Prix : {amount}.",
    },
    {
        "de": "Im {month} stieg der Umsatz um {percent} auf {amount}.",
        "en": "In {month}, sales rose by {percent} to {amount}.",
        "fr": "En {month}, les ventes ont augmenté de {percent} pour atteindre {amount}.",
    },
    {
        "de": "Verfügbare Sprachen: {list}.",
        "en": "Available languages: {list}.",
        "fr": "Langues disponibles : {list}.",
    },
    {
        "de": "Land: {territory}, Sprache: {language}, Währung: {currency}.",
        "en": "Country: {territory}, language: {language}, currency: {currency}.",
        "fr": "Pays : {territory}, langue : {language}, devise : {currency}.",
    },
    {
        "de": "Bitte wählen Sie: {choice}.",
        "en": "Please choose: {choice}.",
        "fr": "Veuillez choisir : {choice}.",
    },
    {
        "de": "Die Sitzung beginnt um {zoned_time}.",
        "en": "The meeting starts at {zoned_time}.",
        "fr": "La réunion commence à {zoned_time}.",
    },
    {
        "de": "Das Hotel ist für {interval} gebucht; der Preis beträgt {amount}.",
        "en": "The hotel is booked for {interval}; the price is {amount}.",
        "fr": "L’hôtel est réservé pour {interval} ; le prix est de {amount}.",
    },
    {
        "de": "Die Strecke ist {length} lang.",
        "en": "The route is {length} long.",
        "fr": "Le parcours mesure {length}.",
    },
    {
        "de": "Sie haben {number} Punkte; das sind {percent} mehr als am {date}.",
        "en": "You have {number} points, which is {percent} more than on {date}.",
        "fr": "Vous avez {number} points, soit {percent} de plus que le {date}.",
    },
    {
        "de": "Die Datei wurde {past} geändert.",
        "en": "The file was changed {past}.",
        "fr": "Le fichier a été modifié {past}.",
    },
    {
        "de": "Die Prüfung am {date} dauert {duration} und beginnt um {time}.",
        "en": "The exam on {date} takes {duration} and starts at {time}.",
        "fr": "L’examen du {date} dure {duration} et commence à {time}.",
    },
    {
        "de": "Der Gewinn lag bei {compact}, ein Plus von {percent}.",
        "en": "Profit was {compact}, up {percent}.",
        "fr": "Le bénéfice était de {compact}, en hausse de {percent}.",
    },
    {
        "de": "Bericht für {quarter}: {number} Besucher, davon {percent} aus: {list}.",
        "en": "Report for {quarter}: {number} visitors, {percent} of them from: {list}.",
        "fr": "Rapport pour {quarter} : {number} visiteurs, dont {percent} de : {list}.",
    },
    {
        "de": "Wir treffen uns am {date}, {hours}.",
        "en": "We will meet on {date}, {hours}.",
        "fr": "Nous nous verrons le {date}, {hours}.",
    },
    {
        "de": "Letzte Anmeldung: {moment} ({territory}).",
        "en": "Last sign-in: {moment} ({territory}).",
        "fr": "Dernière connexion : {moment} ({territory}).",
    },
    {
        "de": "Mischen Sie {mixture} mit {mixture2}.",
        "en": "Mix {mixture} with {mixture2}.",
        "fr": "Mélangez {mixture} avec {mixture2}.",
    },
    {
        "de": "Statt {amount} zahlen Sie bis {day} nur {amount2}.",
        "en": "Until {day}, you pay only {amount2} instead of {amount}.",
        "fr": "Jusqu’au {day}, vous ne payez que {amount2} au lieu de {amount}.",
    },
    {
        "de": "Geboren am {date}, Staatsangehörigkeit: {territory}, Muttersprache: {language}.",
        "en": "Born on {date}, nationality: {territory}, native language: {language}.",
        "fr": "Date de naissance : {date}, nationalité : {territory}, langue maternelle : {language}.",
    },
    {
        "de": "Das Angebot gilt für {list} und endet am {date}.",
        "en": "The offer applies to {list} and ends on {date}.",
        "fr": "L’offre est valable pour {list} et se termine le {date}.",
    },
    {
        "de": "Um {time} waren es {temperature}, um {time2} nur noch {temperature2}.",
        "en": "At {time} it was {temperature}, at {time2} only {temperature2}.",
        "fr": "À {time}, c’était {temperature} ; à {time2}, seulement {temperature2}.",
    },
)
